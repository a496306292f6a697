//! The geometry and surfaces of a synthetic ship: hull, deck, cargo, cranes, superstructure.
//! Lengths are in metres.

use rand::RngExt;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use super::{Purpose, stream};

/// Ships that share one length and beam, like sister ships, so that size alone does not identify a ship.
pub(super) const SHIPS_PER_CLASS: u64 = 50;

/// A ship in its own frame: `y` runs from the stern (0) to the bow (`length_m`), `x` from port to starboard, 0 amidships.
#[derive(Clone, Debug, PartialEq)]
pub struct Ship {
    pub length_m: f32,
    pub beam_m: f32,
    pub(super) hull: Hull,
    pub(super) blocks: Vec<Block>,
    pub(super) cranes: Vec<Crane>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Hull {
    /// Fractions of the length over which bow and stern taper.
    pub bow: f32,
    pub stern: f32,
    /// 1 is a straight taper; larger values are fuller.
    pub fullness: f32,
    /// Beam at the stern over the beam amidships.
    pub transom: f32,
    pub deck: Surface,
    /// Height of the deck above the water.
    pub freeboard_m: f32,
}

/// The appearance of a surface to both sensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Surface {
    /// Fraction of the light that is reflected: red, green, blue.
    pub albedo: [f32; 3],
    /// Radar cross-section per area, in units of a bare deck's.
    pub echo: f32,
}

/// A box on deck.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Block {
    pub y: (f32, f32),
    pub x: (f32, f32),
    pub height_m: f32,
    pub surface: Surface,
    /// Containers; they change with every voyage.
    pub is_cargo: bool,
}

/// A pedestal with a jib: long and thin in optical images, a bright point in radar images.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Crane {
    pub y: f32,
    pub x: f32,
    pub height_m: f32,
    /// End of the jib.
    pub jib: (f32, f32),
    pub echo: f32,
}

/// Deck paints; few, so that colour identifies a ship no better than in reality.
const DECKS: [[f32; 3]; 3] = [[0.32, 0.12, 0.09], [0.16, 0.2, 0.22], [0.14, 0.24, 0.18]];
/// Hatch covers: painted ones are smooth, bare steel ones are rough.
const COVERS: [Surface; 3] = [
    Surface { albedo: [0.45, 0.2, 0.14], echo: 2.0 },
    Surface { albedo: [0.25, 0.3, 0.34], echo: 3.0 },
    Surface { albedo: [0.55, 0.53, 0.5], echo: 7.0 },
];
const CONTAINERS: [[f32; 3]; 6] = [
    [0.45, 0.2, 0.14],
    [0.55, 0.53, 0.5],
    [0.22, 0.3, 0.45],
    [0.25, 0.38, 0.28],
    [0.7, 0.68, 0.64],
    [0.16, 0.15, 0.16],
];
const WHITE: [f32; 3] = [0.8, 0.8, 0.78];
const YELLOW: [f32; 3] = [0.75, 0.6, 0.3];

impl Ship {
    /// The ship with this number; deterministic for a seed.
    pub fn draw(seed: u64, number: u64) -> Self {
        let class = &mut stream(seed, Purpose::Class, number / SHIPS_PER_CLASS, 0);
        let length_m = class.random_range(105.0..270.0_f32);
        let beam_m = length_m / class.random_range(5.6..7.2_f32);
        let random = &mut stream(seed, Purpose::Ship, number, 0);
        let hull = Hull {
            bow: random.random_range(0.08..0.2),
            stern: random.random_range(0.04..0.12),
            fullness: random.random_range(1.4..2.6),
            transom: random.random_range(0.55..0.95),
            deck: Surface { albedo: tint(paint(&DECKS, random), random), echo: 1.0 },
            freeboard_m: random.random_range(3.0..8.0),
        };
        let mut ship = Self { length_m, beam_m, hull, blocks: vec![], cranes: vec![] };
        let house = ship.build_superstructure(random);
        let forecastle = (1.0 - ship.hull.bow) * length_m;
        ship.build_holds(0.04 * length_m, house.0, random);
        ship.build_holds(house.1, forecastle, random);
        ship
    }

    /// The ship on another voyage: every container has another colour.
    pub(super) fn reloaded(&self, random: &mut ChaCha8Rng) -> Self {
        let mut ship = self.clone();
        for block in ship.blocks.iter_mut().filter(|block| block.is_cargo) {
            block.surface.albedo = tint(paint(&CONTAINERS, random), random);
        }
        ship
    }

    fn build(&mut self, y: (f32, f32), x: (f32, f32), height_m: f32, surface: Surface) {
        self.blocks.push(Block { y, x, height_m, surface, is_cargo: false });
    }

    /// Half the beam at a position along the ship; 0 beyond its ends.
    pub(super) fn half_beam(&self, y: f32) -> f32 {
        let along = y / self.length_m;
        if !(0.0..=1.0).contains(&along) {
            return 0.0;
        }
        let Hull { bow, stern, fullness, transom, .. } = self.hull;
        let taper = if along > 1.0 - bow {
            1.0 - ((along - 1.0 + bow) / bow).powf(fullness)
        } else if along < stern {
            transom + (1.0 - transom) * (along / stern)
        } else {
            1.0
        };
        0.5 * self.beam_m * taper
    }

    /// House, bridge and funnel, aft on most ships; returns where the holds behind it end and those
    /// in front of it begin.
    fn build_superstructure(&mut self, random: &mut ChaCha8Rng) -> (f32, f32) {
        let (length, beam) = (self.length_m, self.beam_m);
        let depth = random.random_range(0.07..0.13) * length;
        let aft = length
            * if random.random_bool(0.6) {
                random.random_range(0.04..0.12)
            } else {
                random.random_range(0.3..0.75)
            };
        let half = 0.5 * beam * random.random_range(0.6..0.9);
        let height_m = random.random_range(12.0..26.0);
        let white = Surface { albedo: WHITE, echo: 8.0 };
        self.build((aft, aft + depth), (-half, half), height_m, white);
        let wing = random.random_range(0.3..0.8) * depth;
        self.build((aft + wing, aft + wing + 4.0), (-0.5 * beam, 0.5 * beam), height_m + 3.0, white);
        let funnel = random.random_range(-0.25..0.25) * beam;
        let stack = Surface { albedo: tint(paint(&CONTAINERS, random), random), echo: 6.0 };
        let x = (funnel - 0.1 * beam, funnel + 0.1 * beam);
        self.build((aft - 0.3 * depth, aft + 0.1 * depth), x, height_m + 6.0, stack);
        (aft - 0.4 * depth, aft + depth + 0.02 * length)
    }

    /// A row of holds, each with empty deck, hatch cover, containers or tanks; none where there is no room.
    fn build_holds(&mut self, from: f32, to: f32, random: &mut ChaCha8Rng) {
        let count =
            ((to - from) / (random.random_range(0.09..0.16) * self.length_m)).floor().max(0.0) as usize;
        let cuts: Vec<f32> = (0..count).map(|_| random.random_range(0.6..1.4)).collect();
        let scale = (to - from) / cuts.iter().sum::<f32>();
        let cover = *COVERS.choose(random).expect("there are covers");
        let cover = Surface { albedo: tint(cover.albedo, random), ..cover };
        let half = 0.5 * self.beam_m * random.random_range(0.6..0.85);
        let crane_side = random.random_range(-0.3..0.3) * self.beam_m;
        let geared = random.random_bool(0.6);
        let mut y = from;
        for cut in cuts {
            let end = y + cut * scale;
            let hold = (y + 0.08 * cut * scale, end - 0.08 * cut * scale);
            self.fill_hold(hold, half, cover, random);
            if geared && random.random_bool(0.4) {
                self.raise_crane(end, crane_side, random);
            }
            y = end;
        }
    }

    fn fill_hold(&mut self, y: (f32, f32), half: f32, cover: Surface, random: &mut ChaCha8Rng) {
        match random.random_range(0..5) {
            0 => {}
            1 => self.build(y, (-half, half), 1.5, cover),
            2 => {
                self.build(y, (-half, -0.1 * half), 2.0, cover);
                self.build(y, (0.1 * half, half), 2.0, cover);
            }
            3 => self.stow_containers(y, half, random),
            _ => {
                let height_m = random.random_range(4.0..10.0);
                self.build(y, (-0.55 * half, 0.55 * half), height_m, Surface { albedo: WHITE, echo: 12.0 });
            }
        }
    }

    fn stow_containers(&mut self, y: (f32, f32), half: f32, random: &mut ChaCha8Rng) {
        let stacks = random.random_range(3..=6);
        let width = 2.0 * half / stacks as f32;
        for stack in 0..stacks {
            let left = -half + width * stack as f32;
            let tiers = random.random_range(1..=4) as f32;
            let surface =
                Surface { albedo: tint(paint(&CONTAINERS, random), random), echo: 8.0 + 3.0 * tiers };
            let x = (left, left + 0.9 * width);
            self.blocks.push(Block { y, x, height_m: 2.6 * tiers, surface, is_cargo: true });
        }
    }

    fn raise_crane(&mut self, y: f32, x: f32, random: &mut ChaCha8Rng) {
        let height_m = random.random_range(12.0..22.0);
        let reach = random.random_range(0.06..0.12) * self.length_m;
        let jib = (y + if random.random_bool(0.5) { reach } else { -reach }, x);
        let echo = random.random_range(120.0..300.0);
        self.cranes.push(Crane { y, x, height_m, jib, echo });
        let pedestal = Surface { albedo: YELLOW, echo: 8.0 };
        self.build((y - 1.5, y + 1.5), (x - 1.5, x + 1.5), height_m, pedestal);
        let boom = (jib.0.min(y), jib.0.max(y));
        self.build(boom, (x - 0.8, x + 0.8), 0.7 * height_m, pedestal);
    }
}

fn paint(choice: &[[f32; 3]], random: &mut ChaCha8Rng) -> [f32; 3] {
    *choice.choose(random).expect("there are paints")
}

/// The weathered paint of this ship.
fn tint(paint: [f32; 3], random: &mut ChaCha8Rng) -> [f32; 3] {
    paint.map(|channel| (channel * random.random_range(0.85..1.15)).clamp(0.02, 0.95))
}

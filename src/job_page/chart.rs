//! Curves as SVG; the colours come from the surrounding page.

use maud::{Markup, html};

/// Margins around the plot for labels: left, right, top, bottom.
const MARGINS: [f64; 4] = [48.0, 12.0, 8.0, 34.0];
/// Approximate number of intervals on an axis.
const TICKS: f64 = 5.0;
/// Kinds of lines that the style sheet distinguishes.
const COLOURS: usize = 6;

/// Curves in one frame.
pub struct Chart<'a> {
    pub title: &'a str,
    pub width: f64,
    pub height: f64,
    pub x_label: &'a str,
    pub unit: Unit,
    pub curves: Vec<Curve>,
    /// Positions where something began, each with its label.
    pub marks: Vec<(f64, String)>,
}

/// Points in ascending order of x; all finite.
pub struct Curve {
    pub name: String,
    pub points: Vec<(f64, f64)>,
    pub dots: Dots,
}

/// The kind of value, which determines how it is formatted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Number,
    /// Of a share.
    Percent,
    /// Of any magnitude.
    Scientific,
}

/// Whether each point is drawn, or only the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dots {
    Shown,
    None,
}

impl Unit {
    /// A single value.
    pub fn write(self, value: f64) -> String {
        match self {
            Self::Number => format!("{value:.3}"),
            Self::Percent => format!("{:.1} %", value * 100.0),
            Self::Scientific => format!("{value:.1e}"),
        }
    }

    /// A value on an axis, with as many digits as are needed at this tick distance.
    fn tick(self, value: f64, step: f64) -> String {
        let digits = |step: f64| (-step.log10() - 1e-9).ceil().max(0.0) as usize;
        match self {
            Self::Number => format!("{value:.*}", digits(step)),
            Self::Percent => format!("{:.*} %", digits(step * 100.0), value * 100.0),
            Self::Scientific if value == 0.0 => "0".into(),
            Self::Scientific => format!("{value:.0e}"),
        }
    }
}

impl Chart<'_> {
    /// A figure with a legend that shows the last value of each curve.
    pub fn render(&self) -> Markup {
        let points = || self.curves.iter().flat_map(|curve| &curve.points);
        let Some(x) = Axis::over(points().map(|point| point.0)) else {
            return html! { figure { figcaption { (self.title) } p.nothing { "Nothing yet." } } };
        };
        // An axis whose values are never negative starts at zero.
        let y = Axis::over(points().map(|point| point.1).chain([0.0])).unwrap_or(x);
        let frame = Frame { x, y: y.rounded(), width: self.width, height: self.height };
        html! {
            figure {
                figcaption { (self.title) (self.legend()) }
                svg viewBox=(format!("0 0 {} {}", self.width, self.height)) role="img" aria-label=(self.title) {
                    (frame.grid(self))
                    @for (at, what) in &self.marks { (frame.mark(*at, what)) }
                    @for (number, curve) in self.curves.iter().enumerate() {
                        (frame.curve(number % COLOURS, curve, self))
                    }
                }
            }
        }
    }

    fn legend(&self) -> Markup {
        html! {
            span.legend {
                @for (number, curve) in self.curves.iter().enumerate() {
                    @if let Some((_, last)) = curve.points.last() {
                        span { i class=(format!("swatch c{}", number % COLOURS)) {} (curve.name) " "
                            b { (self.unit.write(*last)) } }
                    }
                }
            }
        }
    }
}

/// A range of values.
#[derive(Clone, Copy)]
struct Axis {
    low: f64,
    high: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>) -> Option<Self> {
        let ends = values.fold(None, |ends: Option<(f64, f64)>, value| {
            Some(ends.map_or((value, value), |(low, high)| (low.min(value), high.max(value))))
        });
        let (low, high) = ends?;
        // A single value still needs a range around it.
        let high = if high > low { high } else { low + low.abs().max(1.0) };
        Some(Self { low, high })
    }

    /// Both ends moved outwards to the next tick.
    fn rounded(self) -> Self {
        let step = self.step();
        Self { low: (self.low / step).floor() * step, high: (self.high / step).ceil() * step }
    }

    /// 1, 2 or 5 times a power of ten.
    fn step(self) -> f64 {
        let rough = (self.high - self.low) / TICKS;
        let power = 10_f64.powf(rough.log10().floor());
        let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= rough * 0.999);
        factor.unwrap_or(10.0) * power
    }

    fn ticks(self) -> impl Iterator<Item = f64> {
        let step = self.step();
        let first = (self.low / step - 1e-9).ceil() as i64;
        let last = (self.high / step + 1e-9).floor() as i64;
        (first..=last).map(move |number| number as f64 * step)
    }

    /// 0 at the low end, 1 at the high end.
    fn share(self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }
}

struct Frame {
    x: Axis,
    y: Axis,
    width: f64,
    height: f64,
}

impl Frame {
    fn at_x(&self, value: f64) -> f64 {
        let [left, right, ..] = MARGINS;
        left + self.x.share(value) * (self.width - left - right)
    }

    fn at_y(&self, value: f64) -> f64 {
        let [.., top, bottom] = MARGINS;
        self.height - bottom - self.y.share(value) * (self.height - top - bottom)
    }

    fn grid(&self, chart: &Chart) -> Markup {
        let [left, right, _, bottom] = MARGINS;
        let (end, floor) = (self.width - right, self.height - bottom);
        // Steps and epochs are integers.
        let whole = self.x.ticks().filter(|tick| (tick - tick.round()).abs() < 1e-6);
        html! {
            @for tick in self.y.ticks() {
                @let y = coordinate(self.at_y(tick));
                line.grid x1=(left) x2=(end) y1=(y) y2=(y) {}
                text.tick x=(left - 6.0) y=(y) dy="0.32em" text-anchor="end" { (chart.unit.tick(tick, self.y.step())) }
            }
            @for tick in whole {
                text.tick x=(coordinate(self.at_x(tick))) y=(floor + 16.0) text-anchor="middle" { (tick) }
            }
            line.axis x1=(left) x2=(end) y1=(floor) y2=(floor) {}
            text.tick x=(end) y=(self.height - 3.0) text-anchor="end" { (chart.x_label) }
        }
    }

    fn mark(&self, at: f64, what: &str) -> Markup {
        let [_, _, top, bottom] = MARGINS;
        let x = coordinate(self.at_x(at.clamp(self.x.low, self.x.high)));
        html! {
            line.mark x1=(x) x2=(x) y1=(top) y2=(self.height - bottom) {}
            text.tick x=(x) y=(top + 10.0) dx="4" { (what) }
        }
    }

    fn curve(&self, colour: usize, curve: &Curve, chart: &Chart) -> Markup {
        let place = |(x, y): (f64, f64)| [coordinate(self.at_x(x)), coordinate(self.at_y(y))];
        let points = curve.points.iter().map(|point| place(*point).join(","));
        let points = points.collect::<Vec<_>>().join(" ");
        html! {
            polyline class=(format!("curve c{colour}")) points=(points) {}
            @if curve.dots == Dots::Shown || curve.points.len() == 1 {
                @for point in &curve.points {
                    @let [x, y] = place(*point);
                    circle class=(format!("dot c{colour}")) cx=(x) cy=(y) r="3" {
                        title { (chart.x_label) " " (point.0) ": " (curve.name) " " (chart.unit.write(point.1)) }
                    }
                }
            }
        }
    }
}

/// Tenths of a unit are finer than any screen.
fn coordinate(value: f64) -> String {
    format!("{value:.1}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>) -> String {
        let curve = Curve { name: "a<b".into(), points, dots: Dots::None };
        let chart = Chart {
            title: "T",
            width: 160.0,
            height: 142.0,
            x_label: "step",
            unit: Unit::Number,
            curves: vec![curve],
            marks: vec![(5.0, "attempt 2".into())],
        };
        chart.render().into_string()
    }

    #[test]
    fn a_curve_fills_its_frame_from_zero_up() {
        let svg = chart(vec![(0.0, 4.0), (5.0, 2.0), (10.0, 1.0)]);
        assert!(svg.contains(r#"points="48.0,8.0 98.0,58.0 148.0,83.0""#), "{svg}");
        assert!(svg.contains(">4</text>") && svg.contains(">0</text>") && svg.contains("attempt 2"));
        assert!(svg.contains("a&lt;b") && !svg.contains("a<b"));
    }

    #[test]
    fn a_single_point_and_none_at_all_have_a_figure() {
        let svg = chart(vec![(3.0, 0.0)]);
        assert!(svg.contains("<circle") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert!(chart(Vec::new()).contains("Nothing yet"));
    }

    #[test]
    fn an_axis_has_as_many_digits_as_it_needs() {
        for (unit, value, step, expected) in [
            (Unit::Number, 4.0, 2.0, "4"),
            (Unit::Number, 4.0, 0.5, "4.0"),
            (Unit::Number, 0.25, 0.05, "0.25"),
            (Unit::Percent, 1.0, 0.2, "100 %"),
            (Unit::Percent, 0.005, 0.005, "0.5 %"),
            (Unit::Scientific, 8e-4, 2e-4, "8e-4"),
            (Unit::Scientific, 0.0, 2e-4, "0"),
        ] {
            assert_eq!(unit.tick(value, step), expected);
        }
    }

    #[test]
    fn ticks_are_round_numbers() {
        for (low, high, expected) in [
            (0.0, 4.2, vec![0.0, 1.0, 2.0, 3.0, 4.0]),
            (0.0, 0.0009, vec![0.0, 0.0002, 0.0004, 0.0006, 0.0008]),
            (3.0, 21.0, vec![5.0, 10.0, 15.0, 20.0]),
            (-1.0, 1.0, vec![-1.0, -0.5, 0.0, 0.5, 1.0]),
        ] {
            let found: Vec<f64> = Axis { low, high }.ticks().collect();
            assert_eq!(found.len(), expected.len(), "{found:?}");
            assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-9), "{found:?}");
        }
    }
}

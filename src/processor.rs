//! The processor: which instruction sets it has, which of them this program requires, and which it may use.

use std::fmt;
use std::sync::OnceLock;

/// Environment variable with the highest level to use, as if the processor supported nothing above it.
/// Together with the variables of [`Level::of_libtorch`] it makes a newer processor behave like an older one,
/// for tests and measurements.
pub const LIMIT: &str = "SHIPREID_CPU_MAX";

/// The minimum for models and searches: x86-64-v3, available from Intel since Haswell (2013) and from AMD
/// since Excavator (2015). Libraries choose among the levels above it.
pub const MINIMUM: Level = Level::Avx2;

/// Instruction sets that come together and determine which code runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// The baseline of an architecture.
    Portable,
    /// x86-64-v3.
    Avx2,
    /// Conversions to bf16 without AVX-512.
    Avx2Vnni2,
    /// x86-64-v4.
    Avx512,
    Avx512Vnni,
    Avx512Bf16,
    /// Tiles.
    Amx,
}

impl Level {
    /// In ascending order.
    pub const ALL: [Self; 7] = [
        Self::Portable,
        Self::Avx2,
        Self::Avx2Vnni2,
        Self::Avx512,
        Self::Avx512Vnni,
        Self::Avx512Bf16,
        Self::Amx,
    ];

    /// As written in [`LIMIT`], logs and labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx2Vnni2 => "avx2_vnni_2",
            Self::Avx512 => "avx512",
            Self::Avx512Vnni => "avx512_vnni",
            Self::Avx512Bf16 => "avx512_bf16",
            Self::Amx => "amx",
        }
    }

    /// The level that it extends.
    fn below(self) -> Option<Self> {
        match self {
            Self::Portable => None,
            Self::Avx2 => Some(Self::Portable),
            Self::Avx2Vnni2 | Self::Avx512 => Some(Self::Avx2),
            Self::Avx512Vnni => Some(Self::Avx512),
            Self::Avx512Bf16 => Some(Self::Avx512Vnni),
            Self::Amx => Some(Self::Avx512Bf16),
        }
    }

    /// Whether a processor with this level also has `other`.
    pub fn includes(self, other: Self) -> bool {
        self == other || self.below().is_some_and(|below| below.includes(other))
    }

    /// What it adds to the level below, by the processors' names for it.
    fn adds(self) -> &'static [&'static str] {
        match self {
            Self::Portable => &[],
            Self::Avx2 => &["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "lzcnt", "movbe"],
            Self::Avx2Vnni2 => &["avxvnni", "avxvnniint8", "avxneconvert"],
            Self::Avx512 => &["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"],
            Self::Avx512Vnni => &["avx512vnni"],
            Self::Avx512Bf16 => &["avx512bf16"],
            Self::Amx => &["amx-tile", "amx-int8", "amx-bf16"],
        }
    }

    /// Environment variables that keep libtorch and the libraries in it to this level. Each library reads its
    /// variable once per process. MKL honours its second variable on Intel processors only; on others it uses
    /// AVX2 at most.
    pub fn of_libtorch(self) -> [(&'static str, &'static str); 3] {
        let (aten, onednn, mkl) = match self {
            Self::Portable => ("default", "SSE41", ("MKL_CBWR", "COMPATIBLE")),
            Self::Avx2 => ("avx2", "AVX2", ("MKL_ENABLE_INSTRUCTIONS", "AVX2")),
            Self::Avx2Vnni2 => ("avx2", "AVX2_VNNI_2", ("MKL_ENABLE_INSTRUCTIONS", "AVX2")),
            Self::Avx512 => ("avx512", "AVX512_CORE", ("MKL_ENABLE_INSTRUCTIONS", "AVX512")),
            Self::Avx512Vnni => ("avx512", "AVX512_CORE_VNNI", ("MKL_ENABLE_INSTRUCTIONS", "AVX512_E1")),
            Self::Avx512Bf16 => ("avx512", "AVX512_CORE_BF16", ("MKL_ENABLE_INSTRUCTIONS", "AVX512_E3")),
            Self::Amx => ("avx512", "AVX512_CORE_AMX", ("MKL_ENABLE_INSTRUCTIONS", "AVX512_E4")),
        };
        [("ATEN_CPU_CAPABILITY", aten), ("ONEDNN_MAX_CPU_ISA", onednn), mkl]
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How often a thread of OpenMP that trains looks for work before it sleeps, about a millisecond: a training step is a thousand
/// short tasks, and waking a thread for each takes longer than some of them.
pub const SPINS_OF_TRAINING: (&str, &str) = ("GOMP_SPINCOUNT", "20000");

/// The processor of this process, limited to what may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Processor {
    name: String,
    /// The instruction sets of some levels, in ascending order.
    sets: Vec<&'static str>,
    limit: Option<Level>,
}

/// Why models and searches cannot run here; every message is one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProcessorError {
    #[error("{LIMIT} is {text:?}; it must be one of {}", Level::ALL.map(Level::name).join(", "))]
    UnknownLimit { text: String },
    #[error("this processor ({name}) has no {}: models and searches need x86-64-v3", .missing.join(", "))]
    TooOld { name: String, missing: Vec<&'static str> },
    #[error("{LIMIT}={limit} leaves less than x86-64-v3, which models and searches need")]
    TooLimited { limit: Level },
}

impl Processor {
    /// The processor that this process runs on.
    pub fn here() -> &'static Self {
        static HERE: OnceLock<Processor> = OnceLock::new();
        // Commands have already refused an invalid limit; elsewhere it has no effect.
        HERE.get_or_init(|| Self { name: name(), sets: present(), limit: limit().unwrap_or_default() })
    }

    /// A processor with this level and nothing above it.
    #[cfg(test)]
    pub(crate) fn with(level: Level) -> Self {
        let below = |other: &Level| level.includes(*other);
        let sets = Level::ALL.into_iter().filter(below).flat_map(|level| level.adds().iter().copied());
        Self { name: "a test".into(), sets: sets.collect(), limit: None }
    }

    /// As the processor calls itself.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it has every instruction set of a level and may use them.
    pub fn has(&self, level: Level) -> bool {
        let is_allowed = self.limit.is_none_or(|limit| limit.includes(level));
        let is_there = level.adds().iter().all(|set| self.sets.contains(set));
        is_allowed && is_there && level.below().is_none_or(|below| self.has(below))
    }

    /// The highest level that it has.
    pub fn level(&self) -> Level {
        Level::ALL.into_iter().rev().find(|level| self.has(*level)).unwrap_or(Level::Portable)
    }

    /// The instruction sets of the levels that it has.
    pub fn sets(&self) -> impl Iterator<Item = &'static str> {
        Level::ALL.into_iter().filter(|level| self.has(*level)).flat_map(|level| level.adds().iter().copied())
    }

    /// The limit, if one is set.
    pub fn limit(&self) -> Option<Level> {
        self.limit
    }

    /// Whether it has what models and searches require.
    fn suffices(&self) -> Result<(), ProcessorError> {
        let missing: Vec<&str> =
            MINIMUM.adds().iter().copied().filter(|set| !self.sets.contains(set)).collect();
        match self.limit {
            // Other architectures have no such names, and we have no kernels that require them.
            _ if cfg!(not(target_arch = "x86_64")) => Ok(()),
            _ if !missing.is_empty() => Err(ProcessorError::TooOld { name: self.name.clone(), missing }),
            Some(limit) if !limit.includes(MINIMUM) => Err(ProcessorError::TooLimited { limit }),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Processor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.level())
    }
}

/// Checked first by every command that runs a model or a search.
///
/// # Errors
/// The processor lacks x86-64-v3, or [`LIMIT`] does not name a level.
pub fn check() -> Result<(), ProcessorError> {
    limit()?;
    Processor::here().suffices()
}

fn limit() -> Result<Option<Level>, ProcessorError> {
    let Some(text) = std::env::var_os(LIMIT).filter(|text| !text.is_empty()) else { return Ok(None) };
    let level = Level::ALL.into_iter().find(|level| text == level.name());
    level.map(Some).ok_or_else(|| ProcessorError::UnknownLimit { text: text.to_string_lossy().into_owned() })
}

#[cfg(target_arch = "x86_64")]
fn present() -> Vec<&'static str> {
    macro_rules! present {
        ($($set:tt),*) => { [$(($set, is_x86_feature_detected!($set))),*] };
    }
    let all = present!(
        "avx",
        "avx2",
        "bmi1",
        "bmi2",
        "f16c",
        "fma",
        "lzcnt",
        "movbe",
        "avxvnni",
        "avxvnniint8",
        "avxneconvert",
        "avx512f",
        "avx512bw",
        "avx512cd",
        "avx512dq",
        "avx512vl",
        "avx512vnni",
        "avx512bf16"
    );
    let present = all.into_iter().filter(|(_, is_there)| *is_there).map(|(set, _)| set);
    present.chain(tiles()).collect()
}

/// What there is of AMX, if the system lets this process use its registers, which it has to be asked for.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn tiles() -> Vec<&'static str> {
    use std::arch::x86_64::{__cpuid, __cpuid_count};

    const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    let features = if __cpuid(0).eax >= 7 { __cpuid_count(7, 0).edx } else { 0 };
    let sets = [("amx-bf16", 22), ("amx-tile", 24), ("amx-int8", 25)];
    let present: Vec<_> = sets.into_iter().filter(|(_, bit)| features >> bit & 1 == 1).collect();
    // SAFETY: the call takes two numbers and changes nothing but the permission.
    let is_allowed = !present.is_empty()
        && unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) } == 0;
    present.into_iter().filter(|_| is_allowed).map(|(set, _)| set).collect()
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn tiles() -> Vec<&'static str> {
    Vec::new()
}

#[cfg(not(target_arch = "x86_64"))]
fn present() -> Vec<&'static str> {
    Vec::new()
}

/// The brand string with family and model, because clouds use one brand string for whole generations.
#[cfg(target_arch = "x86_64")]
fn name() -> String {
    use std::arch::x86_64::__cpuid;

    let brand = if __cpuid(0x8000_0000).eax >= 0x8000_0004 {
        let leaves = (0x8000_0002..=0x8000_0004_u32).map(__cpuid);
        let bytes: Vec<u8> = leaves
            .flat_map(|leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx])
            .flat_map(u32::to_le_bytes)
            .take_while(|byte| *byte != 0)
            .collect();
        String::from_utf8_lossy(&bytes).split_whitespace().collect::<Vec<_>>().join(" ")
    } else {
        "x86-64".to_owned()
    };
    let version = __cpuid(1).eax;
    let (family, model) = (version >> 8 & 0xF, version >> 4 & 0xF);
    let extended = if family == 0xF { version >> 20 & 0xFF } else { 0 };
    let upper = if family == 0xF || family == 6 { version >> 16 & 0xF } else { 0 };
    format!("{brand}, family {} model {}", family + extended, upper << 4 | model)
}

#[cfg(not(target_arch = "x86_64"))]
fn name() -> String {
    std::env::consts::ARCH.to_owned()
}

#[cfg(test)]
mod tests;

//! The authors' YAML, with overrides behind NUL bytes: what is taken is a run that its own TOML describes as well, what
//! is refused is told in one line.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use shipreid::train::{AuthorsConfig, TrainConfig};
use shipreid_fuzz::{Bound, watched};

const BOUND: Bound = Bound { bytes: 256 << 10, per_input_byte: 512 };

fuzz_target!(|data: &[u8]| -> Corpus {
    let Ok(text) = str::from_utf8(data) else { return Corpus::Reject };
    let mut parts = text.split('\0');
    let yaml = parts.next().unwrap_or_default();
    let overrides: Vec<String> = parts.map(str::to_owned).collect();
    match watched(BOUND, data.len(), || AuthorsConfig::read(yaml, &overrides)) {
        Ok(AuthorsConfig { config, out, ignored: _ }) => {
            assert!(config.violations().is_empty());
            assert!(out.is_none_or(|out| !out.as_os_str().is_empty()));
            let toml = toml::to_string(&config).expect("a configuration is a table");
            assert_eq!(TrainConfig::parse(&toml), Ok(config), "{toml}");
        }
        Err(refused) => assert!(!refused.to_string().contains(char::is_control), "{refused}"),
    }
    Corpus::Keep
});

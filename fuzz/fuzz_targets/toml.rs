//! Configurations of a server and of a run: what is taken is read again from what it prints, what is refused is told in
//! one line.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use shipreid::config::Config;
use shipreid::train::TrainConfig;
use shipreid_fuzz::{Bound, watched};

const BOUND: Bound = Bound { bytes: 512 << 10, per_input_byte: 256 };

fuzz_target!(|data: &[u8]| -> Corpus {
    let Ok(text) = str::from_utf8(data) else { return Corpus::Reject };
    match watched(BOUND, data.len(), || Config::parse("server.toml", text)) {
        Ok(config) => {
            let printed = toml::to_string(&config).expect("a configuration is a table");
            assert_eq!(Config::parse("printed.toml", &printed), Ok(config), "{printed}");
        }
        Err(refused) => assert!(!refused.to_string().contains(char::is_control), "{refused}"),
    }
    match watched(BOUND, data.len(), || TrainConfig::parse(text)) {
        Ok(config) => {
            let printed = toml::to_string(&config).expect("a configuration is a table");
            assert_eq!(TrainConfig::parse(&printed), Ok(config), "{printed}");
        }
        Err(refused) => assert!(!refused.to_string().contains(char::is_control), "{refused}"),
    }
    Corpus::Keep
});

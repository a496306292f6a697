//! The file of keys behind a key that is known: what is taken is read again from its own blocks and still knows that
//! key, nobody else gets in, and what is refused is told in one line.

#![no_main]

use std::time::SystemTime;

use libfuzzer_sys::{Corpus, fuzz_target};
use shipreid::keys::{Key, KeyRing, Rejection};
use shipreid_fuzz::{Bound, watched};

/// TOML that is wrong in every byte has an error, with what was expected, for each.
const BOUND: Bound = Bound { bytes: 64 << 10, per_input_byte: 1024 };

const TOKEN: &str = "shipreid.known.secret";
const BLOCK: &str = r#"
[[key]]
id = "known"
tenant = "harbour"
roles = ["embed"]
sha256 = "26d0c7d321e0dbbceac728a2812a6248445ac6cd78890e905b3ad7e696a423bc"
"#;

fuzz_target!(|data: &[u8]| -> Corpus {
    let Ok(text) = str::from_utf8(data) else { return Corpus::Reject };
    for text in [text, &format!("{BLOCK}{text}")] {
        match watched(BOUND, text.len(), || KeyRing::parse(text)) {
            Ok(ring) => check(&ring, text),
            Err(refused) => assert!(!refused.contains(char::is_control), "{refused}"),
        }
    }
    Corpus::Keep
});

fn check(ring: &KeyRing, text: &str) {
    let blocks: String = ring.keys().map(Key::block).collect();
    assert_eq!(KeyRing::parse(&blocks).as_ref(), Ok(ring), "{blocks}");
    assert!(ring.keys().all(|key| ring.holds(key) && !key.roles.is_empty()));
    let now = SystemTime::UNIX_EPOCH;
    match ring.find(TOKEN, now) {
        Ok(key) => assert_eq!(&*key.id, "known"),
        Err(Rejection::Expired) => {}
        Err(Rejection::Invalid) => assert!(!text.starts_with(BLOCK), "the known key is lost: {text}"),
    }
    for key in ring.keys() {
        let guess = format!("shipreid.{}.", key.id);
        assert_eq!(ring.find(&guess, now), Err(Rejection::Invalid), "{guess}");
    }
}

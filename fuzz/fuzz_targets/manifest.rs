//! A manifest that is read, printed and read again is the same, and each of its lines finds the file that it names.

#![no_main]

use std::path::Path;

use libfuzzer_sys::{Corpus, fuzz_target};
use shipreid::manifest::{FileNames, Manifest, ManifestEntry, ManifestError};
use shipreid_fuzz::{Bound, watched};

const BOUND: Bound = Bound { bytes: 16 << 10, per_input_byte: 256 };

fuzz_target!(|data: &[u8]| -> Corpus {
    let Ok(text) = str::from_utf8(data) else { return Corpus::Reject };
    match watched(BOUND, data.len(), || Manifest::parse(text)) {
        Ok(manifest) => {
            reads_what_it_prints(&manifest);
            finds_its_files(&manifest, data.len());
        }
        Err(refused) => assert!(!refused.to_string().contains(char::is_control), "{refused:?}"),
    }
    Corpus::Keep
});

fn reads_what_it_prints(manifest: &Manifest) {
    let line = |known: &ManifestEntry| serde_json::to_string(known).expect("a line is an object");
    let printed: Vec<String> = manifest.lines().map(line).collect();
    let again = Manifest::parse(&printed.join("\n")).expect("a printed manifest");
    assert!(again.lines().eq(manifest.lines()), "{manifest:?} is read again as {again:?}");
    manifest.lines().for_each(|known| drop(known.observation()));
}

fn finds_its_files(manifest: &Manifest, input_bytes: usize) {
    let names = manifest.lines().map(|known| FileNames { path: Path::new(&known.file), name: &known.file });
    let names: Vec<_> = names.collect();
    match watched(BOUND, 8 * input_bytes, || manifest.of(&names)) {
        Ok(known) => assert!(manifest.lines().eq(&known), "{manifest:?} found {known:?}"),
        Err(ManifestError::Ambiguous { .. }) => {}
        Err(error) => panic!("{manifest:?}: {error}"),
    }
}

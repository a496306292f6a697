//! Exports of galleries, in pieces of any length: what is found whole becomes a gallery with as many entries, which can
//! be searched, written to and exported again; whatever else is refused there as well.
//!
//! An input that begins with `S` has no tail; one that fits is put behind it.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use shipreid::cancellation::Cancellation;
use shipreid::gallery::{
    Chips, EmbeddedCatalog, EmbeddedSettings, Export, Filter, Gallery, GalleryName, ImportBounds, Inspected,
    QueueSettings, Quotas, inspect,
};
use shipreid_fuzz::{Bound, watched};

/// An embedding of 65,536 numbers, and what redb holds in memory are not in the input.
const BOUND: Bound = Bound { bytes: 1 << 20, per_input_byte: 64 };
const CATALOG_BOUND: Bound = Bound { bytes: 64 << 20, per_input_byte: 256 };

fuzz_target!(|data: &[u8]| {
    let file = match data.strip_prefix(b"S") {
        Some(frames) => with_tail(frames),
        None => data.to_vec(),
    };
    let in_one = watched(BOUND, file.len(), || inspect([&file]));
    let piece_bytes = 1 + file.len() % 97;
    let in_pieces = watched(BOUND, file.len(), || inspect(file.chunks(piece_bytes)));
    assert_eq!(in_one, in_pieces, "pieces of {piece_bytes} bytes");
    if let Ok(inspected) = in_one {
        watched(CATALOG_BOUND, file.len(), || becomes_a_gallery(&file, inspected));
    }
});

/// `frames` and the frame that counts them.
fn with_tail(frames: &[u8]) -> Vec<u8> {
    let mut file = frames.to_vec();
    let mut rest = frames.get(20..).unwrap_or_default();
    let mut entries = 0;
    while let Some((length, frame)) = rest.split_first_chunk::<4>() {
        let Some((frame, behind)) = frame.split_at_checked(u32::from_le_bytes(*length) as usize) else {
            break;
        };
        // Field 2 of a frame is an entry.
        entries += u8::from(frame.first() == Some(&0x12));
        rest = behind;
    }
    let checksum = crc32fast::hash(&file).to_le_bytes();
    let tail = [&[0x08, entries & 0x7f, 0x15][..], &checksum].concat();
    let frame = [&[0x1a, tail.len() as u8][..], &tail].concat();
    file.extend((frame.len() as u32).to_le_bytes());
    file.extend(frame);
    file
}

fn becomes_a_gallery(file: &[u8], inspected: Inspected) {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let catalog = catalog(folder.path());
    let Ok(gallery) = import(&catalog, "first", file) else {
        // Two entries may have one id, which only a gallery sees.
        return catalog.close();
    };
    let info = gallery.info();
    assert_eq!(
        (info.entries, gallery.snapshot().about().dimension),
        (inspected.entries, inspected.dimension)
    );
    let exported = export(&gallery);
    assert_eq!(inspect([&exported]), Ok(inspected), "an export of the import");
    let again = import(&catalog, "second", &exported).expect("an export of our own");
    assert_eq!(export(&again), exported);
    let page = again.snapshot().list(&Filter::default(), None, 3, &Cancellation::default()).expect("a page");
    assert!(page.entries.windows(2).all(|pair| pair[0].0 < pair[1].0));
    assert_eq!(page.next.is_some(), inspected.entries > 3);
    catalog.close();
}

fn catalog(folder: &Path) -> EmbeddedCatalog {
    let settings = EmbeddedSettings {
        cache_bytes: 1 << 20,
        queue: QueueSettings { operations_max: 8, bytes_max: 1 << 20 },
        quotas: Quotas { galleries_per_tenant: 4, entries_per_gallery: 1000, bytes_per_tenant: 1 << 30 },
        imports: ImportBounds { image_bytes_max: 1 << 20, bytes_max: 8 << 20 },
    };
    EmbeddedCatalog::open(folder, settings).expect("an empty folder")
}

fn import(catalog: &EmbeddedCatalog, name: &str, file: &[u8]) -> Result<Gallery, String> {
    let name = GalleryName::new(name).expect("a name");
    let mut import = catalog.import("t", &name).map_err(|error| error.to_string())?;
    file.chunks(1000)
        .try_for_each(|piece| import.push(piece, &Cancellation::default()))
        .map_err(|error| error.to_string())?;
    import.finish(&Cancellation::default()).map_err(|error| error.to_string())
}

fn export(gallery: &Gallery) -> Vec<u8> {
    let pieces = Export::new(gallery.snapshot(), Chips::With);
    pieces.flat_map(|piece| piece.expect("memory is readable")).collect()
}

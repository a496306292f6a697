//! An index as bytes.

use super::*;

#[test]
fn an_index_that_was_saved_is_the_same_and_can_grow_and_shrink() {
    let random = &mut ChaCha8Rng::seed_from_u64(6);
    for mut pair in [Pair::new(1), Pair::new(64), Pair::new(70), Pair::composed(&[3, 70])] {
        let (dimension, composition) = (pair.index.dimension(), pair.index.composition);
        for _ in 0..ROWS + 10 {
            pair.push(random_entry(random), random_unit(random, dimension));
        }
        (0..pair.next).step_by(7).for_each(|row| pair.remove(RowId(row)));
        let mut bytes = Vec::new();
        pair.index.write(&mut bytes).expect("memory takes everything");
        let saved = pair.clone();
        pair.index = Index::read(dimension, composition, &mut bytes.as_slice()).expect("an index");
        assert_eq!(pair.index.ids(), saved.index.ids());
        assert_eq!(pair.index.live_rows().collect::<Vec<_>>(), saved.index.live_rows().collect::<Vec<_>>());
        for _ in 0..2 {
            let asks: Vec<Ask> = (0..3).map(|_| random_ask(&pair, random)).collect();
            pair.check(&asks, &Filter::default());
            pair.check(&asks, &random_filter(&pair, random));
            for _ in 0..100 {
                pair.push(random_entry(random), random_unit(random, dimension));
            }
            (0..pair.next).step_by(3).for_each(|row| pair.remove(RowId(row)));
            pair.index.renew_names();
        }
    }
}

#[test]
fn what_is_no_saved_index_is_refused_without_a_panic() {
    let random = &mut ChaCha8Rng::seed_from_u64(16);
    let mut pair = Pair::composed(&[5, 3]);
    let composition = pair.index.composition;
    for _ in 0..40 {
        pair.push(random_entry(random), random_unit(random, 8));
    }
    let mut bytes = Vec::new();
    pair.index.write(&mut bytes).expect("memory takes everything");
    for length in 0..bytes.len() {
        assert!(
            Index::read(8, composition, &mut &bytes[..length]).is_err(),
            "{length} of {} bytes",
            bytes.len()
        );
    }
    for _ in 0..3000 {
        let mut other = bytes.clone();
        let at = random.random_range(0..other.len());
        other[at] ^= 1 << random.random_range(0..8);
        // Only a checksum can tell whether it is what was written.
        let _ = Index::read(8, composition, &mut other.as_slice());
    }
}

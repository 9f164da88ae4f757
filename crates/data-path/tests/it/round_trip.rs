//! What was written is read, by either backend.

use data_path::{Backend, Entries, FormatError, HoleMap, SealBudget, layout};
use layout::{GROUP, PAGE, REGION_GROUPS};
use proptest::prelude::*;

use crate::image::{keys, plain, read, with_holes, write};

const AWS: Backend = Backend::AwsLc;
const RUST: Backend = Backend::RustCrypto;

#[test]
fn sizes_around_every_edge() {
    let edges = [0, 1, PAGE, 2 * PAGE, 61 * PAGE, 62 * PAGE, 63 * PAGE, 125 * PAGE, 188 * PAGE];
    for size in edges.into_iter().flat_map(|edge| [edge.saturating_sub(1), edge, edge + 1]) {
        let plain = plain(size);
        let image = write(&keys(1, AWS), &plain, |_| false);
        assert_eq!(image.len() as u64, layout::backing_len(size as u64));
        assert_eq!(read(&keys(1, RUST), &image).unwrap(), plain, "size {size}");
    }
}

#[test]
fn nothing_readable_lies_in_the_image() {
    let image = write(&keys(1, AWS), &[b'x'; 10 * PAGE], |_| false);
    assert!(!image.windows(5).any(|window| window == b"xxxxx"));
}

#[test]
fn two_copies_of_one_file_share_no_block() {
    let (one, two) = (
        write(&keys(1, AWS), &plain(9000), |_| false),
        write(&keys(1, AWS), &plain(9000), |_| false),
    );
    for (a, b) in one[PAGE..].chunks(16).zip(two[PAGE..].chunks(16)) {
        assert_ne!(a, b);
    }
}

/// Groups at the start of the second region, which is 8 GiB into the file: its own hole map, its
/// own shift by one block.
#[test]
fn groups_of_the_second_region() {
    let (keys, other) = (keys(1, AWS), keys(1, RUST));
    let size = 62 * PAGE as u64 + layout::first_block(REGION_GROUPS + 2) * PAGE as u64;
    let file = keys.create_file().unwrap();
    let mut first_page = vec![0; GROUP];
    file.write_header(&mut first_page, size).unwrap();
    let reader = other.open_file(&first_page, layout::backing_len(size)).unwrap();
    assert_eq!(reader.size(), size);

    let mut holes = HoleMap::default();
    holes.set_hole(REGION_GROUPS + 1);
    for (group, blocks, holes) in [
        (REGION_GROUPS - 1, 63, None),
        (REGION_GROUPS, 62, Some(&holes)),
        (REGION_GROUPS + 2, 62, None),
    ] {
        let len = layout::group_len(group, size);
        let data = layout::data_range(group, len);
        assert_eq!(data.len(), blocks * PAGE);
        let mut buffer = vec![0; len];
        buffer[data.clone()].copy_from_slice(&plain(data.len()));
        file.seal_group(group, &mut buffer, Entries::ALL, holes).unwrap();
        let opened = reader.open_group(group, &mut buffer).unwrap();
        assert!(opened.is_sound());
        assert_eq!(opened.holes.as_ref(), holes);
        assert_eq!((opened.written.len(), &buffer[data]), (blocks, &plain(blocks * PAGE)[..]));
    }
}

#[test]
fn holes_hide_what_their_buffer_had() {
    let keys = keys(1, AWS);
    let file = keys.create_file().unwrap();
    let mut buffer = vec![b'x'; 3 * PAGE];
    file.seal_group(0, &mut buffer, Entries::first(1), None).unwrap();
    assert!(layout::is_zero(&buffer[2 * PAGE..]));
}

#[test]
fn a_buffer_that_is_no_group_is_refused() {
    let keys = keys(1, AWS);
    let file = keys.create_file().unwrap();
    for (group, len) in
        [(0, 0), (0, PAGE - 1), (1, PAGE), (0, GROUP - 1), (0, GROUP + 1), (1, GROUP + 1)]
    {
        let refused = file.seal_group(group, &mut vec![0; len], Entries::ALL, None);
        assert_eq!(refused, Err(FormatError::Buffer { group, found: len }));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_size_and_any_holes(
        size in 0_usize..400 * PAGE,
        run in 1_u64..150,
        pattern in any::<u64>(),
        aws_writes in any::<bool>(),
    ) {
        let (writer, reader) = if aws_writes { (AWS, RUST) } else { (RUST, AWS) };
        let hole = |block: u64| pattern >> (block / run % 64) & 1 == 1;
        let plain = plain(size);
        let image = write(&keys(1, writer), &plain, hole);
        prop_assert_eq!(read(&keys(1, reader), &image).unwrap(), with_holes(&plain, hole));
    }

    #[test]
    fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..3 * PAGE), ours in any::<bool>(), group in any::<u64>()) {
        let keys = keys(1, AWS);
        let mut bytes = bytes;
        if ours && bytes.len() > 40 {
            // Far enough that the key, not the magic, refuses it.
            bytes[..7].copy_from_slice(b"COFFER\x01");
            bytes[24..40].copy_from_slice(&[1; 16]);
        }
        prop_assert!(keys.open_file(&bytes, bytes.len() as u64).is_err());
        let file = keys.create_file().unwrap();
        prop_assert!(file.open_group(group, &mut bytes).is_err());
    }
}

/// The reservation that a header makes in advance is enough for the whole file, to the last seal of
/// a batch.
#[test]
fn a_header_written_first_reserves_enough() {
    let keys = keys(1, AWS);
    // One batch and not one more: 64,509 blocks, 1,024 tag pages, a hole map, two copies of the
    // header.
    let blocks: u64 = 64_509;
    let size = blocks * PAGE as u64;
    let groups = layout::group_count(size);
    assert_eq!(blocks + groups + 1 + 2, SealBudget::BATCH);
    let file = keys.create_file().unwrap();
    let mut buffer = vec![0; GROUP];
    file.write_header(&mut buffer, size).unwrap();
    for group in 0..groups {
        let len = layout::group_len(group, size);
        file.seal_group(group, &mut buffer[..len], Entries::ALL, None).unwrap();
    }
    // The hole map's seal is left.
    assert!(file.seal_block(0, &mut [0; 1]).is_ok());
    assert!(matches!(file.seal_block(0, &mut [0; 1]), Err(FormatError::SealsNotReserved)));
}

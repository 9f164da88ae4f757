//! Somebody who writes the backing directory and has no key: whatever he does is an error, never
//! other data.

use data_path::{Backend, FilesystemKeys, FormatError, layout};
use layout::{GROUP, PAGE};
use proptest::prelude::*;

use crate::image::{keys, plain, read, read_open, write};

const AWS: Backend = Backend::AwsLc;

fn ours() -> FilesystemKeys {
    keys(1, AWS)
}

/// Three groups, the middle one wholly a hole, and a hole of one block in the first.
fn sparse(block: u64) -> bool {
    block == 3 || (62..125).contains(&block)
}

const SPARSE_LEN: usize = 130 * PAGE + 100;

#[track_caller]
fn assert_refused(image: &[u8], what: &str) {
    assert!(read(&ours(), image).is_err(), "not noticed: {what}");
}

#[test]
fn every_byte_of_a_small_file_counts() {
    let image = write(&ours(), &plain(2 * PAGE + 30), |_| false);
    for at in 0..image.len() {
        let mut altered = image.clone();
        altered[at] ^= 1 << (at % 8);
        assert_refused(&altered, &format!("byte {at}"));
    }
}

#[test]
fn every_bit_of_a_header_counts() {
    let image = write(&ours(), &plain(10), |_| false);
    for bit in 0..8 * 316 {
        let mut altered = image.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        assert_refused(&altered, &format!("bit {bit}"));
    }
}

#[test]
fn every_byte_of_a_later_tag_page_counts() {
    let image = write(&ours(), &plain(SPARSE_LEN), sparse);
    let file = ours().open_file(&image, image.len() as u64).unwrap();
    for at in 0..PAGE {
        let mut group = image[2 * GROUP..].to_vec();
        group[at] ^= 1 << (at % 8);
        assert_eq!(file.open_group(2, &mut group), Err(FormatError::TagPage(2)), "byte {at}");
    }
}

#[test]
fn damage_is_named_and_spoils_nothing_else() {
    let keys = ours();
    let plain = plain(130 * PAGE);
    let image = write(&keys, &plain, |_| false);
    let mut altered = image.clone();
    altered[5 * PAGE] ^= 1; // block 4
    altered[GROUP + 500] ^= 1; // the tag page of group 1
    altered[184] ^= 1; // copy 0 of the sealed part
    let file = keys.open_file(&altered, altered.len() as u64).unwrap();
    let (read, damage) = read_open(&file, &altered);
    assert_eq!(
        damage,
        [FormatError::HeaderCopy(0), FormatError::Block(4), FormatError::TagPage(1)]
    );
    for (block, (got, was)) in read.chunks(PAGE).zip(plain.chunks(PAGE)).enumerate() {
        let lost = block == 4 || (62..125).contains(&block);
        assert!(if lost { layout::is_zero(got) } else { got == was }, "block {block}");
    }
}

#[test]
fn blocks_swapped_within_a_file() {
    let image = write(&ours(), &plain(130 * PAGE), |_| false);
    for (one, other) in [(1, 2), (1, 62), (5, 65), (65, 129)] {
        let mut altered = image.clone();
        // The blocks alone, and with their slots.
        let (left, right) = altered.split_at_mut(other * PAGE);
        left[one * PAGE..][..PAGE].swap_with_slice(&mut right[..PAGE]);
        assert_refused(&altered, &format!("pages {one} and {other}"));
        let slot = |page: usize| page / 64 * GROUP + 316 + (page % 64 - 1) * 60;
        for byte in 0..60 {
            altered.swap(slot(one) + byte, slot(other) + byte);
        }
        assert_refused(&altered, &format!("pages {one} and {other} with their slots"));
    }
}

#[test]
fn groups_swapped_and_repeated() {
    let image = write(&ours(), &plain(188 * PAGE), |_| false);
    let mut swapped = image.clone();
    let (left, right) = swapped.split_at_mut(2 * GROUP);
    left[GROUP..].swap_with_slice(&mut right[..GROUP]);
    assert_refused(&swapped, "groups 1 and 2 swapped");
    let mut repeated = image.clone();
    repeated.copy_within(GROUP..2 * GROUP, 2 * GROUP);
    assert_refused(&repeated, "group 1 repeated as group 2");
}

#[test]
fn parts_of_another_file() {
    let keys = ours();
    let (one, other) =
        (write(&keys, &plain(130 * PAGE), |_| false), write(&keys, &plain(130 * PAGE), |_| false));
    let pieces = [
        ("a block", 2 * PAGE..3 * PAGE),
        ("the first tag page", 0..PAGE),
        ("a later tag page", GROUP..GROUP + PAGE),
        ("a group", GROUP..2 * GROUP),
        ("the header", 0..272),
        ("a copy of the sealed part", 184..228),
        ("salt and commitment", 40..104),
        ("entries", 316..PAGE),
    ];
    for (what, range) in pieces {
        let mut mixed = one.clone();
        mixed[range.clone()].copy_from_slice(&other[range]);
        assert_refused(&mixed, what);
    }
}

#[test]
fn a_file_of_another_filesystem() {
    let theirs = write(&keys(2, AWS), &plain(9000), |_| false);
    let found = kms_core::KeyId::from_bytes([2; 16]);
    assert_eq!(read(&ours(), &theirs), Err(vec![FormatError::OtherKey { found }]));
    // Relabelled as ours: the commitment tells, before anything is decrypted.
    let mut relabelled = theirs;
    relabelled[24..40].copy_from_slice(&[1; 16]);
    assert_eq!(read(&ours(), &relabelled), Err(vec![FormatError::WrongKey]));
}

#[test]
fn cut_and_extended_at_every_boundary() {
    // With a last block that is whole, only the sealed size tells that a hole was appended.
    for (len, holes) in [(SPARSE_LEN, false), (SPARSE_LEN, true), (130 * PAGE, true)] {
        let image = write(&ours(), &plain(len), |block| holes && sparse(block));
        for len in (0..image.len() + 3 * GROUP).step_by(PAGE / 2).flat_map(|len| [len, len + 1]) {
            let mut altered = image.clone();
            altered.resize(len, 0);
            if len != image.len() {
                assert_refused(&altered, &format!("{len} bytes of {}", image.len()));
            }
        }
    }
}

#[test]
fn cut_after_it_was_opened() {
    let image = write(&ours(), &plain(SPARSE_LEN), sparse);
    let file = ours().open_file(&image, image.len() as u64).unwrap();
    let damage = |pages: usize| {
        let opened = file.open_group(0, &mut image[..pages * PAGE].to_vec()).unwrap();
        opened.damage().collect::<Vec<_>>()
    };
    assert_eq!(damage(64), []);
    assert_eq!(damage(63), [FormatError::HoleMap(0)]);
    let lost = [FormatError::Block(60), FormatError::Block(61), FormatError::HoleMap(0)];
    assert_eq!(damage(61), lost);
}

#[test]
fn zeroed_blocks_and_groups() {
    let image = write(&ours(), &plain(SPARSE_LEN), sparse);
    let occupied =
        |page: &usize| !layout::is_zero(&image[page * PAGE..image.len().min((page + 1) * PAGE)]);
    let mut zeroed = 0;
    for page in (0..image.len().div_ceil(PAGE)).filter(occupied) {
        let mut altered = image.clone();
        let end = altered.len().min((page + 1) * PAGE);
        altered[page * PAGE..end].fill(0);
        assert_refused(&altered, &format!("page {page} zeroed"));
        zeroed += 1;
    }
    // 61 blocks, tag page and hole map of the first group; tag page and 6 blocks of the third.
    assert_eq!(zeroed, 61 + 2 + 1 + 6);
    for group in [0, 2] {
        let mut altered = image.clone();
        let end = altered.len().min((group + 1) * GROUP);
        altered[group * GROUP..end].fill(0);
        assert_refused(&altered, &format!("group {group} zeroed"));
    }
}

#[test]
fn holes_made_into_data() {
    let keys = ours();
    let image = write(&keys, &plain(SPARSE_LEN), sparse);
    let dense = write(&keys, &plain(SPARSE_LEN), |_| false);
    let pieces =
        [(FormatError::Hole(3), 4 * PAGE..5 * PAGE), (FormatError::HoleGroup(1), GROUP..2 * GROUP)];
    for (expected, range) in pieces {
        let mut altered = image.clone();
        altered[range.clone()].copy_from_slice(&dense[range]);
        assert_eq!(read(&keys, &altered), Err(vec![expected]));
    }
    // In a file without a hole map the map's page is zeros.
    let mut altered = dense;
    altered[63 * PAGE + 5] = 1;
    assert_eq!(read(&keys, &altered), Err(vec![FormatError::HoleMap(0)]));
}

#[test]
fn a_group_made_into_a_hole_by_another_files_map() {
    let keys = ours();
    let (dense, holey) =
        (write(&keys, &plain(SPARSE_LEN), |_| false), write(&keys, &plain(SPARSE_LEN), sparse));
    let mut altered = dense;
    altered[63 * PAGE..64 * PAGE].copy_from_slice(&holey[63 * PAGE..64 * PAGE]);
    altered[GROUP..2 * GROUP].fill(0);
    assert_refused(&altered, "hole map of another file");
}

/// Noticed, unless it is the newest copy of all: then the header is that of one write ago.
#[test]
fn an_older_header_copy_put_back() {
    let keys = ours();
    let old = write(&keys, &plain(100), |_| false);
    let file = keys.open_file(&old, old.len() as u64).unwrap();
    let mut state = file.state();
    state.seals_reserved += data_path::SealBudget::BATCH;
    let mut new = old.clone();
    for (copy, range) in [(1, 228..272), (0, 184..228)] {
        // Two writes replace both copies, a third one the older of them again.
        for _ in 0..3 {
            file.update_header(&mut new, &state).unwrap();
        }
        let mut mixed = new.clone();
        mixed[range.clone()].copy_from_slice(&old[range]);
        assert_eq!(read(&keys, &mixed), Err(vec![FormatError::HeaderCopy(copy)]));
    }
}

#[test]
fn a_newer_format_is_told_apart() {
    let mut image = write(&ours(), b"x", |_| false);
    image[6] = 2;
    assert_eq!(read(&ours(), &image), Err(vec![FormatError::Newer(2)]));
    image[6] = 0;
    assert_eq!(read(&ours(), &image), Err(vec![FormatError::Header]));
    assert_eq!(read(&ours(), &[b'x'; PAGE]), Err(vec![FormatError::NotEncrypted]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_byte_altered_anywhere(at in any::<proptest::sample::Index>(), by in 1_u8.., holes in any::<bool>()) {
        let image = write(&ours(), &plain(SPARSE_LEN), |block| holes && sparse(block));
        let mut altered = image;
        let at = at.index(altered.len());
        altered[at] ^= by;
        prop_assert!(read(&ours(), &altered).is_err(), "byte {}", at);
    }
}

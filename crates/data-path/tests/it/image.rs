//! Whole backing files in memory: what an importer writes and a reader reads.

use std::sync::Arc;

use data_path::{Backend, Entries, FileCipher, FilesystemKeys, FormatError, HoleMap, layout};
use kms_core::{FilesystemKey, KeyId};
use layout::{GROUP, PAGE};

/// The keys of one filesystem, told apart by a number.
pub(crate) fn keys(number: u8, backend: Backend) -> FilesystemKeys {
    let id = KeyId::from_bytes([number; 16]);
    let key = FilesystemKey::from_bytes(id, &[number; 32]).unwrap();
    FilesystemKeys::new(Arc::new(key), backend).unwrap()
}

/// Bytes that differ from block to block.
pub(crate) fn plain(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / PAGE * 7 + at % 251 + 1) as u8).collect()
}

/// Writes a new file; blocks for which `hole` holds are left out, and whole groups of them too.
pub(crate) fn write(keys: &FilesystemKeys, plain: &[u8], hole: impl Fn(u64) -> bool) -> Vec<u8> {
    let file = keys.create_file().unwrap();
    let size = plain.len() as u64;
    let mut image = vec![0; layout::backing_len(size) as usize];
    let mut holes = HoleMap::default();
    // The first group comes last: it has the hole map of its region.
    for group in (0..layout::group_count(size)).rev() {
        let data = layout::group_data(group, size);
        let first = layout::first_block(group);
        let blocks = (data.end - data.start).div_ceil(PAGE as u64) as usize;
        let written: Entries = (0..blocks).filter(|&entry| !hole(first + entry as u64)).collect();
        if written.is_empty() && !layout::is_region_start(group) {
            holes.set_hole(group);
            continue;
        }
        let len = layout::group_len(group, size);
        let buffer = &mut image[layout::group_position(group) as usize..][..len];
        buffer[layout::data_range(group, len)]
            .copy_from_slice(&plain[data.start as usize..data.end as usize]);
        file.seal_group(group, buffer, written, Some(&holes)).unwrap();
    }
    file.write_header(&mut image, size).unwrap();
    image
}

/// What is there after holes became zeros.
pub(crate) fn with_holes(plain: &[u8], hole: impl Fn(u64) -> bool) -> Vec<u8> {
    let mut plain = plain.to_vec();
    for (block, bytes) in plain.chunks_mut(PAGE).enumerate() {
        if hole(block as u64) {
            bytes.fill(0);
        }
    }
    plain
}

/// Reads a whole file: its bytes, or everything that is wrong with it.
pub(crate) fn read(keys: &FilesystemKeys, image: &[u8]) -> Result<Vec<u8>, Vec<FormatError>> {
    let file = keys.open_file(image, image.len() as u64).map_err(|e| vec![e])?;
    let (plain, damage) = read_open(&file, image);
    if damage.is_empty() { Ok(plain) } else { Err(damage) }
}

/// Reads on past damage, as an audit does.
pub(crate) fn read_open(file: &FileCipher, image: &[u8]) -> (Vec<u8>, Vec<FormatError>) {
    let mut plain = vec![0; file.size() as usize];
    let mut damage = Vec::from_iter(file.header_damage());
    let mut holes = None;
    for group in 0..layout::group_count(file.size()) {
        let at = layout::group_position(group) as usize;
        let mut buffer = image[at..image.len().min(at + GROUP)].to_vec();
        if holes.as_ref().is_some_and(|holes: &HoleMap| holes.is_hole(group)) {
            if !layout::is_zero(&buffer) {
                damage.push(FormatError::HoleGroup(group));
            }
            continue;
        }
        match file.open_group(group, &mut buffer) {
            Err(error) => damage.push(error),
            Ok(opened) => {
                damage.extend(opened.damage());
                let data = layout::group_data(group, file.size());
                plain[data.start as usize..data.end as usize]
                    .copy_from_slice(&buffer[layout::data_range(group, buffer.len())]);
                if layout::is_region_start(group) {
                    holes = opened.holes;
                }
            }
        }
    }
    (plain, damage)
}

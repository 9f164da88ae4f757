//! A writer that follows the protocol, killed after each of its writes: every block is the old or
//! the new one.

use data_path::{
    Backend, FileCipher, FileState, FilesystemKeys, FormatError, SealBudget, TagPage, layout,
};
use layout::{PAGE, Place};

use crate::image::{keys, plain, read, read_open, write};

/// A backing file to which a writer makes one write after the other; all but the first few are
/// lost.
struct Disk {
    bytes: Vec<u8>,
    survives: usize,
}

impl Disk {
    fn write(&mut self, at: u64, bytes: &[u8]) {
        if self.survives == 0 {
            return;
        }
        self.survives -= 1;
        let at = at as usize;
        self.bytes.resize(self.bytes.len().max(at + bytes.len()), 0);
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// What a mount keeps in memory of a file that it writes.
struct Writer {
    file: FileCipher,
    first_page: [u8; PAGE],
    tags: TagPage,
    state: FileState,
}

impl Writer {
    /// Opens a file of one group for writing: reserves seals, and marks it dirty before anything
    /// else.
    fn open(keys: &FilesystemKeys, disk: &mut Disk) -> Self {
        let file = keys.open_file(&disk.bytes, disk.bytes.len() as u64).unwrap();
        let mut first_page = [0; PAGE];
        first_page.copy_from_slice(&disk.bytes[..PAGE]);
        let tags = file.open_tag_page(0, &first_page).unwrap();
        let mut state = file.state();
        state.dirty = true;
        state.seals_reserved += SealBudget::BATCH;
        let mut writer = Self { file, first_page, tags, state };
        writer.put_header(disk);
        writer.file.grant_seals(writer.state.seals_reserved).unwrap();
        writer
    }

    fn put_header(&mut self, disk: &mut Disk) {
        self.file.update_header(&mut self.first_page, &self.state).unwrap();
        disk.write(0, &self.first_page);
    }

    fn put_tags(&mut self, disk: &mut Disk) {
        self.file.seal_tag_page(0, &self.tags, &mut self.first_page).unwrap();
        disk.write(0, &self.first_page);
    }

    /// Overwrites: the slot first, then the block. Into a hole: the block first.
    fn write_block(&mut self, disk: &mut Disk, block: u64, plain: &[u8]) {
        let place = Place::of_block(block);
        let was_hole = !self.tags.written().contains(place.entry);
        let mut sealed = plain.to_vec();
        let slot = self.file.seal_block(block, &mut sealed).unwrap();
        self.tags.fill_older(place.entry, &slot);
        if was_hole {
            disk.write(place.position(), &sealed);
            self.put_tags(disk);
        } else {
            self.put_tags(disk);
            disk.write(place.position(), &sealed);
        }
    }

    fn close(mut self, disk: &mut Disk, size: u64) {
        self.state.size = size;
        self.state.dirty = false;
        self.put_header(disk);
    }
}

/// Runs `act` on a copy of `image` and kills it after each of its writes; `check` sees the file as
/// it is then read.
fn kill_everywhere(
    image: &[u8],
    act: impl Fn(&FilesystemKeys, &mut Disk),
    check: impl Fn(usize, &FileCipher, Vec<u8>),
) {
    let (keys, reader) = (keys(1, Backend::AwsLc), keys(1, Backend::RustCrypto));
    let mut whole = Disk { bytes: image.to_vec(), survives: usize::MAX };
    act(&keys, &mut whole);
    let writes = usize::MAX - whole.survives;
    assert!(writes > 2);
    for survives in 0..=writes {
        let mut disk = Disk { bytes: image.to_vec(), survives };
        act(&keys, &mut disk);
        let file = reader.open_file(&disk.bytes, disk.bytes.len() as u64).unwrap();
        assert_eq!(file.state().dirty, (1..writes).contains(&survives));
        let (plain, damage) = read_open(&file, &disk.bytes);
        assert_eq!(damage, [], "after write {survives} of {writes}");
        check(survives, &file, plain);
    }
}

#[test]
fn overwriting_a_block() {
    let old = plain(3 * PAGE);
    let image = write(&keys(1, Backend::AwsLc), &old, |_| false);
    let versions: Vec<Vec<u8>> =
        [old[PAGE..2 * PAGE].to_vec(), vec![1; PAGE], vec![2; PAGE], vec![3; PAGE]].into();
    kill_everywhere(
        &image,
        |keys, disk| {
            let mut writer = Writer::open(keys, disk);
            for version in &versions[1..] {
                writer.write_block(disk, 1, version);
            }
            writer.close(disk, old.len() as u64);
        },
        |writes, _, read| {
            // One write marks the file dirty, then each version takes two, the second of which
            // counts.
            let version = &versions[(writes.saturating_sub(1) / 2).min(3)];
            assert_eq!(&read[PAGE..2 * PAGE], version, "after write {writes}");
            assert_eq!((&read[..PAGE], &read[2 * PAGE..]), (&old[..PAGE], &old[2 * PAGE..]));
        },
    );
}

#[test]
fn writing_into_a_hole() {
    let old = plain(3 * PAGE);
    let image = write(&keys(1, Backend::AwsLc), &old, |block| block == 1);
    kill_everywhere(
        &image,
        |keys, disk| {
            let mut writer = Writer::open(keys, disk);
            writer.write_block(disk, 1, &[9; PAGE]);
            writer.close(disk, old.len() as u64);
        },
        |writes, _, read| {
            let expected = if writes < 3 { [0; PAGE] } else { [9; PAGE] };
            assert_eq!(read[PAGE..2 * PAGE], expected, "after write {writes}");
        },
    );
}

#[test]
fn appending() {
    let old = plain(PAGE + 100);
    let image = write(&keys(1, Backend::AwsLc), &old, |_| false);
    let long = plain(2 * PAGE + 50);
    kill_everywhere(
        &image,
        |keys, disk| {
            let mut writer = Writer::open(keys, disk);
            // The last block becomes a whole one, then a new last block follows.
            writer.write_block(disk, 1, &long[PAGE..2 * PAGE]);
            writer.write_block(disk, 2, &long[2 * PAGE..]);
            writer.close(disk, long.len() as u64);
        },
        |writes, file, read| {
            let size = match writes {
                0..3 => old.len(),
                3 => 2 * PAGE,
                _ => long.len(),
            };
            assert_eq!((file.size(), read.len()), (size as u64, size), "after write {writes}");
            // A block that was written and is not in the map yet reads as a hole.
            let known = if writes == 4 { 2 * PAGE } else { size };
            assert_eq!(read[..known], long[..known], "after write {writes}");
            assert!(layout::is_zero(&read[known..]));
        },
    );
}

#[test]
fn a_dirty_file_is_settled() {
    let (keys, old) = (keys(1, Backend::AwsLc), plain(2 * PAGE));
    let mut disk = Disk { bytes: write(&keys, &old, |_| false), survives: 2 };
    Writer::open(&keys, &mut disk).write_block(&mut disk, 0, &[1; PAGE]);

    let file = keys.open_file(&disk.bytes, disk.bytes.len() as u64).unwrap();
    let opened = file.open_group(0, &mut disk.bytes.clone()).unwrap();
    assert_eq!(opened.on_older.iter().collect::<Vec<_>>(), [0]);

    // Called clean as it lies, the block that needs its older slot is damage.
    let mut unsettled = Disk { bytes: disk.bytes.clone(), survives: 2 };
    Writer::open(&keys, &mut unsettled).close(&mut unsettled, old.len() as u64);
    assert_eq!(read(&keys, &unsettled.bytes), Err(vec![FormatError::Block(0)]));

    disk.survives = 3;
    let mut writer = Writer::open(&keys, &mut disk);
    opened.on_older.iter().for_each(|entry| writer.tags.settle_on_older(entry));
    writer.put_tags(&mut disk);
    writer.close(&mut disk, old.len() as u64);
    assert_eq!(read(&keys, &disk.bytes).unwrap(), old);
}

#[test]
fn a_dirty_file_may_have_grown_and_not_shrunk() {
    let (keys, old) = (keys(1, Backend::AwsLc), plain(2 * PAGE));
    let mut disk = Disk { bytes: write(&keys, &old, |_| false), survives: 1 };
    Writer::open(&keys, &mut disk);
    let size = |bytes: &[u8], len: usize| keys.open_file(bytes, len as u64).map(|file| file.size());
    let len = disk.bytes.len();
    assert_eq!(size(&disk.bytes, len + 10), Ok(old.len() as u64 + 10));
    // Its writer died between the tag page of a new group, or a hole map, and a block.
    let group = layout::GROUP;
    assert_eq!(size(&disk.bytes, group + PAGE), Ok(62 * PAGE as u64));
    assert_eq!(size(&disk.bytes, group), Ok(62 * PAGE as u64));
    let cut = FormatError::Size { sealed: old.len() as u64, found: old.len() as u64 - 1 };
    assert_eq!(size(&disk.bytes, len - 1), Err(cut));
}

#[test]
fn a_block_is_punched_out() {
    let (keys, old) = (keys(1, Backend::AwsLc), plain(3 * PAGE));
    let mut disk = Disk { bytes: write(&keys, &old, |_| false), survives: usize::MAX };
    let mut writer = Writer::open(&keys, &mut disk);
    writer.tags.clear(1);
    writer.put_tags(&mut disk);
    disk.write(Place::of_block(1).position(), &[0; PAGE]);
    writer.close(&mut disk, old.len() as u64);
    let read = read(&keys, &disk.bytes).unwrap();
    assert!(layout::is_zero(&read[PAGE..2 * PAGE]) && read[..PAGE] == old[..PAGE]);
}

#[test]
fn a_new_salt_takes_over_block_by_block() {
    let (keys, old) = (keys(1, Backend::AwsLc), plain(2 * PAGE));
    let mut disk = Disk { bytes: write(&keys, &old, |_| false), survives: usize::MAX };
    let mut writer = Writer::open(&keys, &mut disk);
    writer.state.seals_reserved = SealBudget::BATCH;
    writer.file = writer.file.renew_salt(&keys, &mut writer.first_page, &writer.state).unwrap();
    disk.write(0, &writer.first_page);
    writer.write_block(&mut disk, 1, &[8; PAGE]);
    writer.close(&mut disk, old.len() as u64);
    let expected = [&old[..PAGE], &[8; PAGE]].concat();
    assert_eq!(read(&keys, &disk.bytes).unwrap(), expected);

    // Every byte of a header with two epochs counts too.
    for at in 0..316 {
        let mut altered = disk.bytes.clone();
        altered[at] ^= 0x40;
        assert!(read(&keys, &altered).is_err(), "byte {at}");
    }

    // The next new salt takes the place of the first, which nothing needs once all is sealed anew.
    let mut writer = Writer::open(&keys, &mut disk);
    writer.write_block(&mut disk, 0, &old[..PAGE]);
    writer.state.seals_reserved = SealBudget::BATCH;
    writer.file = writer.file.renew_salt(&keys, &mut writer.first_page, &writer.state).unwrap();
    disk.write(0, &writer.first_page);
    writer.put_tags(&mut disk);
    writer.close(&mut disk, old.len() as u64);
    assert_eq!(read(&keys, &disk.bytes).unwrap(), expected);
}

#[test]
fn seals_need_a_durable_reservation() {
    let keys = keys(1, Backend::AwsLc);
    let image = write(&keys, &plain(10), |_| false);
    let file = keys.open_file(&image, image.len() as u64).unwrap();
    assert_eq!(file.state().seals_reserved, SealBudget::BATCH);
    assert!(matches!(file.seal_block(0, &mut [0; 10]), Err(FormatError::SealsNotReserved)));
    let mut state = file.state();
    state.seals_reserved = SealBudget::LIMIT;
    file.update_header(&mut image.clone(), &state).unwrap();
    file.grant_seals(SealBudget::LIMIT).unwrap();
    assert!(file.seal_block(0, &mut [0; 10]).is_ok());
    assert!(matches!(
        keys.create_file().unwrap().write_header(&mut image.clone(), 5 << 40),
        Err(FormatError::SealsExhausted)
    ));
}

/// A file gets another key, and its writer is killed after each of its writes.
#[test]
fn another_key_takes_over_group_by_group() {
    let (old_keys, new_keys) = (keys(1, Backend::AwsLc), keys(2, Backend::AwsLc));
    // Two groups and a hole.
    let old = {
        let mut old = plain(70 * PAGE + 11);
        old[3 * PAGE..4 * PAGE].fill(0);
        old
    };
    let image = write(&old_keys, &old, |block| block == 3);
    let writes = {
        let mut whole = Disk { bytes: image.clone(), survives: usize::MAX };
        rekey(&new_keys, &old_keys, &mut whole);
        assert_eq!(read(&new_keys, &whole.bytes).unwrap(), old);
        assert!(read(&old_keys, &whole.bytes).is_err());
        usize::MAX - whole.survives
    };
    assert!(writes > 70);
    for survives in 0..=writes {
        let mut disk = Disk { bytes: image.clone(), survives };
        rekey(&new_keys, &old_keys, &mut disk);
        let check = |disk: &Disk| {
            let len = disk.bytes.len() as u64;
            let file = new_keys.open_file_between(&old_keys, &disk.bytes, len).unwrap();
            let (plain, damage) = read_open(&file, &disk.bytes);
            assert_eq!(damage, [], "after write {survives} of {writes}");
            assert!(plain == old, "after write {survives} of {writes}");
        };
        check(&disk);
        // Taken up, and killed again in its middle.
        disk.survives = writes / 3;
        rekey(&new_keys, &old_keys, &mut disk);
        check(&disk);
        disk.survives = usize::MAX;
        rekey(&new_keys, &old_keys, &mut disk);
        assert_eq!(read(&new_keys, &disk.bytes).unwrap(), old);
    }
}

/// Seals a file again as a re-encryption does, from wherever it stands.
fn rekey(new: &FilesystemKeys, old: &FilesystemKeys, disk: &mut Disk) {
    let len = disk.bytes.len() as u64;
    let mut file = new.open_file_between(old, &disk.bytes, len).unwrap();
    if file.epoch_keys() == (Some(new.key_id()), None) {
        return;
    }
    let mut first_page: [u8; PAGE] = *disk.bytes.first_chunk().unwrap();
    let mut state = FileState { dirty: true, ..file.state() };
    if file.has_former() {
        state.seals_reserved += SealBudget::BATCH;
        file.update_header(&mut first_page, &state).unwrap();
        file.grant_seals(state.seals_reserved).unwrap();
    } else {
        file = file.renew_salt(new, &mut first_page, &state).unwrap();
    }
    disk.write(0, &first_page);
    let groups = 0..layout::group_count(file.size());
    let mut written = Vec::new();
    for group in groups {
        let at = layout::group_position(group) as usize;
        let mut buffer = disk.bytes[at..at + layout::group_len(group, file.size())].to_vec();
        if group == 0 {
            buffer[..PAGE].copy_from_slice(&first_page);
        }
        let renewed = file.renew_group(group, &mut buffer).unwrap();
        assert_eq!(renewed.damage().next(), None);
        if renewed.tag_page {
            disk.write(at as u64, &buffer[..PAGE]);
        }
        for entry in renewed.pages.iter() {
            let page = PAGE * (entry + 1)..(PAGE * (entry + 2)).min(buffer.len());
            disk.write((at + page.start) as u64, &buffer[page]);
        }
        let mut page: [u8; PAGE] = *buffer.first_chunk().unwrap();
        if file.forget_older(group, &mut page, renewed.damaged).unwrap() {
            written.push((at, page));
        }
        if group == 0 {
            first_page = page;
        }
    }
    for (at, page) in written {
        disk.write(at as u64, &page);
    }
    state.dirty = false;
    file.drop_former(&mut first_page, &state).unwrap();
    disk.write(0, &first_page);
}

#[test]
fn what_is_damaged_is_not_renewed_and_keeps_its_epoch() {
    let (old_keys, new_keys) = (keys(1, Backend::AwsLc), keys(2, Backend::AwsLc));
    let old = plain(3 * PAGE);
    let mut bytes = write(&old_keys, &old, |_| false);
    bytes[2 * PAGE + 5] ^= 1;
    let mut first_page: [u8; PAGE] = *bytes.first_chunk().unwrap();
    let file = new_keys.open_file_between(&old_keys, &bytes, bytes.len() as u64).unwrap();
    let mut state = FileState { dirty: true, ..file.state() };
    let file = file.renew_salt(&new_keys, &mut first_page, &state).unwrap();
    bytes[..PAGE].copy_from_slice(&first_page);
    let renewed = file.renew_group(0, &mut bytes).unwrap();
    assert_eq!(renewed.damage().collect::<Vec<_>>(), [FormatError::Block(1)]);
    assert_eq!(renewed.pages.iter().collect::<Vec<_>>(), [0, 2]);
    first_page.copy_from_slice(&bytes[..PAGE]);
    assert!(file.forget_older(0, &mut first_page, renewed.damaged).unwrap());
    let tags = file.open_tag_page(0, &first_page).unwrap();
    assert!(file.is_unsettled(&tags, &first_page), "the damaged block's slots are kept");
    state.dirty = false;
    file.update_header(&mut first_page, &state).unwrap();
    bytes[..PAGE].copy_from_slice(&first_page);
    // Turned back, the bit makes it what it was.
    bytes[2 * PAGE + 5] ^= 1;
    let file = new_keys.open_file_between(&old_keys, &bytes, bytes.len() as u64).unwrap();
    assert_eq!(read_open(&file, &bytes), (old, vec![]));
}

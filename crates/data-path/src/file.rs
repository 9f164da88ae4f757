//! The cipher of one file: its header, its blocks, its tag pages.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

use aws_lc_rs::constant_time::verify_slices_are_equal;

use kms_core::KeyId;

use crate::aad::{AAD_LEN, Domain, aad};
use crate::aead::{Aead, Seal};
use crate::budget::SealBudget;
use crate::header::{
    COPY_LEN, EPOCH_BYTE, EpochHead, HEADER_LEN, OpenPart, SEAL_LEN, SealedPart, UNUSED_EPOCH_BITS,
    array, bound_part, copy_at, copy_epoch_bit, join_sealed, split_sealed,
};
use crate::keys::FilesystemKeys;
use crate::layout::{self, PAGE};
use crate::nonce::{self, Nonce};
use crate::tag_page::{ENTRIES_AT, ENTRIES_LEN, Entries, Slot, TagPage};
use crate::{FileId, FormatError};

/// Seals and opens what lies in one backing file. It holds no data and no position: any number of
/// threads may use it at once, on groups in any order.
///
/// [`FilesystemKeys::create_file`] makes one for a new file, [`FilesystemKeys::open_file`] for one
/// that exists.
pub struct FileCipher {
    open_part: OpenPart,
    epochs: [Option<Epoch>; 2],
    /// What the sealed part said when the file was opened; for a new file, that it is empty.
    sealed: SealedPart,
    /// The number of the sealed copy that was written last.
    last_number: AtomicU32,
    size: u64,
    damaged_copy: Option<u8>,
}

/// What a file's header says about it, sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileState {
    /// The file's size in bytes: exact in a clean file, a lower bound in a dirty one.
    pub size: u64,
    /// The file is open for writing, or was when its writer died: older slots count.
    pub dirty: bool,
    /// Seals that may be made under the current salt before more are reserved; a multiple of
    /// [`SealBudget::BATCH`].
    pub seals_reserved: u64,
}

struct Epoch {
    head: EpochHead,
    aead: Box<dyn Aead>,
    budget: SealBudget,
}

impl Epoch {
    fn new(keys: &FilesystemKeys, file: FileId, salt: [u8; 32]) -> Result<Self, FormatError> {
        let (key, commitment) = keys.file_key(&salt, file)?;
        let head = EpochHead { key: keys.key_id(), salt, commitment };
        Ok(Self { head, aead: keys.backend.cipher(&key)?, budget: SealBudget::unrecorded() })
    }

    /// The epoch of a file on disk, under that of `keys` that it names. Its budget is set once the sealed part is open.
    fn existing(
        keys: &[&FilesystemKeys],
        file: FileId,
        head: EpochHead,
    ) -> Result<Self, FormatError> {
        let named = keys.iter().find(|keys| keys.key_id() == head.key);
        let keys = named.ok_or(FormatError::OtherKey { found: head.key })?;
        let epoch = Self::new(keys, file, head.salt)?;
        verify_slices_are_equal(&epoch.head.commitment, &head.commitment)
            .map_err(|_| FormatError::WrongKey)?;
        Ok(epoch)
    }
}

impl FilesystemKeys {
    /// The cipher of a new file, with a random id and salt. Its header is written by
    /// [`FileCipher::write_header`].
    ///
    /// # Errors
    /// [`FormatError::Library`] when the system gives no random bytes.
    pub fn create_file(&self) -> Result<FileCipher, FormatError> {
        let id = FileId::random()?;
        let epoch = Epoch::new(self, id, nonce::random()?)?;
        Ok(FileCipher {
            open_part: OpenPart { id, epochs: [Some(epoch.head), None] },
            epochs: [Some(epoch), None],
            sealed: SealedPart { number: 0, size: 0, dirty: false, current: 0, reserved: [0; 2] },
            // The first copy written is number 0, in copy 0.
            last_number: AtomicU32::new(u32::MAX),
            size: 0,
            damaged_copy: None,
        })
    }

    /// Opens a file from the first page (or more) of its backing file and that file's length. The
    /// key's commitment is compared before anything is decrypted; the sealed size must be the one
    /// that follows from the length (of a dirty file: at most that).
    ///
    /// # Errors
    /// What is damaged; [`FormatError::OtherKey`] for a file of another filesystem.
    pub fn open_file(
        &self,
        first_page: &[u8],
        backing_len: u64,
    ) -> Result<FileCipher, FormatError> {
        FileCipher::open(&[self], first_page, backing_len)
    }

    /// As [`Self::open_file`], a file of a filesystem that is being re-encrypted from the key `previous`: each of its
    /// epochs is of one of the two.
    ///
    /// # Errors
    /// Those of [`Self::open_file`].
    pub fn open_file_between(
        &self,
        previous: &Self,
        first_page: &[u8],
        backing_len: u64,
    ) -> Result<FileCipher, FormatError> {
        FileCipher::open(&[self, previous], first_page, backing_len)
    }
}

impl FileCipher {
    fn open(
        keys: &[&FilesystemKeys],
        first_page: &[u8],
        backing_len: u64,
    ) -> Result<Self, FormatError> {
        let page =
            first_page.get(..PAGE).ok_or(FormatError::BackingLength { found: backing_len })?;
        let open_part = OpenPart::parse(page)?;
        let epoch = |head| Epoch::existing(keys, open_part.id, head);
        let [first, second] = open_part.epochs;
        let epochs = [first.map(epoch).transpose()?, second.map(epoch).transpose()?];
        if page[EPOCH_BYTE] & UNUSED_EPOCH_BITS != 0 {
            return Err(FormatError::Header);
        }
        let copy = |copy| open_copy(&epochs, open_part.id, page, copy);
        let (sealed, damaged_copy) = newest_copy(copy(0), copy(1))?;
        for (epoch, reserved) in epochs.iter().zip(sealed.reserved) {
            match epoch {
                Some(epoch) => epoch.budget.resume(reserved),
                None if reserved == 0 => {}
                None => return Err(FormatError::Header),
            }
        }
        let size = match layout::size_within(backing_len) {
            Some(size) if sealed.dirty => size,
            _ => layout::logical_size(backing_len)?,
        };
        if size < sealed.size || (size > sealed.size && !sealed.dirty) {
            return Err(FormatError::Size { sealed: sealed.size, found: size });
        }
        let last_number = AtomicU32::new(sealed.number);
        Ok(Self { open_part, epochs, sealed, last_number, size, damaged_copy })
    }
}

/// Opens one copy of the sealed part; `None` when it is damaged.
fn open_copy(
    epochs: &[Option<Epoch>; 2],
    file: FileId,
    page: &[u8],
    copy: u8,
) -> Option<SealedPart> {
    let epoch = epochs[usize::from(page[EPOCH_BYTE] & copy_epoch_bit(copy) != 0)].as_ref()?;
    let (seal, sealed) = split_sealed(&page[copy_at(copy)]);
    let mut plain: [u8; COPY_LEN] = array(sealed);
    epoch.aead.open(&seal, &header_aad(epoch, file, page, copy), &mut plain).ok()?;
    let part = SealedPart::parse(&plain)?;
    epochs[part.current].is_some().then_some(part)
}

/// The newest of the copies, and which copy is damaged although the file can be opened.
fn newest_copy(
    first: Option<SealedPart>,
    second: Option<SealedPart>,
) -> Result<(SealedPart, Option<u8>), FormatError> {
    match (first, second) {
        (Some(first), Some(second)) => match second.number.wrapping_sub(first.number) {
            1 => Ok((second, None)),
            u32::MAX => Ok((first, None)),
            // Both are authentic, and not of consecutive writes: the older was put back.
            ahead if ahead <= u32::MAX / 2 => Ok((second, Some(0))),
            _ => Ok((first, Some(1))),
        },
        (Some(first), None) => Ok((first, Some(1))),
        (None, Some(second)) => Ok((second, Some(0))),
        (None, None) => Err(FormatError::Header),
    }
}

/// The associated data of a sealed copy: the header's open part follows the usual parts.
fn header_aad(epoch: &Epoch, file: FileId, page: &[u8], copy: u8) -> Vec<u8> {
    let [before, after] = bound_part(page);
    let fixed = aad(Domain::Header, epoch.head.key, file, u64::from(copy), COPY_LEN);
    [&fixed[..], before, after].concat()
}

impl FileCipher {
    /// The file's id, to which its extended attributes are bound.
    pub const fn id(&self) -> FileId {
        self.open_part.id
    }

    /// The file's size when it was opened, as it follows from the backing file's length; 0 for a
    /// new file.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// What the header said when the file was opened.
    pub const fn state(&self) -> FileState {
        self.sealed.state()
    }

    /// A damaged copy of the header's sealed part. The other copy serves, so the file can be read,
    /// and an audit reports it.
    pub const fn header_damage(&self) -> Option<FormatError> {
        match self.damaged_copy {
            None => None,
            Some(copy) => Some(FormatError::HeaderCopy(copy)),
        }
    }

    /// Writes the header of a new, finished file of this size into the first page (or more) of its
    /// backing file. It reserves the seals that were made and all that a file of this size needs,
    /// so it may come before or after its groups; [`Self::seal_group`] leaves it alone.
    ///
    /// # Errors
    /// [`FormatError::TooLong`], [`FormatError::SealsExhausted`] for a file too large for one salt
    /// (4 TiB).
    pub fn write_header(&self, first_page: &mut [u8], size: u64) -> Result<(), FormatError> {
        let seals_reserved = self.current()?.budget.for_new_file(size)?;
        // What lay in the page before means nothing, so both copies are made.
        self.write_both(first_page, &FileState { size, dirty: false, seals_reserved })?;
        self.grant_seals(seals_reserved)
    }

    /// Writes `state` over the older of the header's sealed copies in the first page of a file that
    /// exists, and keeps the other. One call at a time for each file.
    ///
    /// # Errors
    /// [`FormatError::SealsNotReserved`], [`FormatError::SealsExhausted`],
    /// [`FormatError::TooLong`].
    pub fn update_header(
        &self,
        first_page: &mut [u8],
        state: &FileState,
    ) -> Result<(), FormatError> {
        if state.size > layout::MAX_SIZE {
            return Err(FormatError::TooLong { what: "a file", limit: layout::MAX_SIZE });
        }
        let found = first_page.len();
        let page = first_page.get_mut(..PAGE).ok_or(FormatError::Buffer { group: 0, found })?;
        let epoch = self.current()?;
        let current = self.sealed.current;
        let mut reserved = self.sealed.reserved;
        reserved[current] = state.seals_reserved.clamp(reserved[current], SealBudget::LIMIT);
        epoch.budget.take_for_header(reserved[current])?;
        let number = self.last_number.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let part = SealedPart { number, size: state.size, dirty: state.dirty, current, reserved };
        let copy = (number & 1) as u8;
        self.open_part.write(page);
        page[EPOCH_BYTE] &= !copy_epoch_bit(copy);
        if current == 1 {
            page[EPOCH_BYTE] |= copy_epoch_bit(copy);
        }
        let mut plain = part.to_bytes();
        let associated = header_aad(epoch, self.id(), page, copy);
        let seal = epoch.aead.seal(Nonce::random()?, &associated, &mut plain)?;
        join_sealed(&mut page[copy_at(copy)], &seal, &plain);
        Ok(())
    }

    /// Gives the file a new salt, under which all is sealed from now on; what was sealed before
    /// still opens. The epoch before the last is given up: nothing may be sealed under it any more.
    /// `state` goes into both copies of the header in `first_page`, which must be durable before
    /// anything that is sealed under the new salt is.
    ///
    /// # Errors
    /// As of [`Self::update_header`].
    pub fn renew_salt(
        mut self,
        keys: &FilesystemKeys,
        first_page: &mut [u8],
        state: &FileState,
    ) -> Result<Self, FormatError> {
        let next = 1 - self.sealed.current;
        let epoch = Epoch::new(keys, self.id(), nonce::random()?)?;
        epoch.budget.grant(state.seals_reserved);
        self.open_part.epochs[next] = Some(epoch.head);
        self.epochs[next] = Some(epoch);
        self.sealed.current = next;
        self.sealed.reserved[next] = 0;
        self.write_both(first_page, state)?;
        Ok(self)
    }

    pub(crate) fn write_both(
        &self,
        first_page: &mut [u8],
        state: &FileState,
    ) -> Result<(), FormatError> {
        self.update_header(first_page, state)?;
        self.update_header(first_page, state)
    }

    /// How many seals may still be made of those that are granted.
    pub fn seals_left(&self) -> u64 {
        self.current().map_or(0, |epoch| epoch.budget.left())
    }

    /// Lets so many seals be made in all under the current salt. A header that reserves them must
    /// be durable.
    ///
    /// # Errors
    /// [`FormatError::Header`], which no valid state gives.
    pub fn grant_seals(&self, reserved: u64) -> Result<(), FormatError> {
        self.current()?.budget.grant(reserved);
        Ok(())
    }

    /// Seals a block in place and answers its slot. `data` is the whole block: 4096 bytes, or what
    /// the last block has.
    ///
    /// # Errors
    /// [`FormatError::SealsNotReserved`], [`FormatError::SealsExhausted`].
    pub fn seal_block(&self, block: u64, data: &mut [u8]) -> Result<Slot, FormatError> {
        self.current()?.budget.take(1)?;
        self.seal_page(Domain::Block, block, data)
    }

    /// Opens a block in place.
    ///
    /// # Errors
    /// [`FormatError::Block`]; `data` then is zeros.
    pub fn open_block(&self, block: u64, data: &mut [u8], slot: &Slot) -> Result<(), FormatError> {
        if self.open_page(Domain::Block, block, data, slot) {
            return Ok(());
        }
        data.fill(0);
        Err(FormatError::Block(block))
    }

    /// Seals a tag page into the page of its group. In the first group's the header stays as it is.
    ///
    /// # Errors
    /// [`FormatError::SealsNotReserved`], [`FormatError::SealsExhausted`].
    pub fn seal_tag_page(
        &self,
        group: u64,
        tags: &TagPage,
        page: &mut [u8; PAGE],
    ) -> Result<(), FormatError> {
        self.current()?.budget.take(1)?;
        self.put_tag_page(group, tags, page)
    }

    /// Opens the tag page of a group.
    ///
    /// # Errors
    /// [`FormatError::TagPage`].
    pub fn open_tag_page(&self, group: u64, page: &[u8; PAGE]) -> Result<TagPage, FormatError> {
        self.parse_tag_page(group, page).ok_or(FormatError::TagPage(group))
    }

    pub(crate) fn put_tag_page(
        &self,
        group: u64,
        tags: &TagPage,
        page: &mut [u8; PAGE],
    ) -> Result<(), FormatError> {
        let epoch = self.current()?;
        if group > 0 {
            page[..HEADER_LEN].fill(0);
        }
        page[EPOCH_BYTE] = page[EPOCH_BYTE] & !STATE_EPOCH_BIT | self.sealed.current as u8;
        page[ENTRIES_AT..].copy_from_slice(&*tags.entries);
        let mut state = [0; STATE_LEN];
        state[..8].copy_from_slice(&tags.written.bits().to_le_bytes());
        state[8..].copy_from_slice(&tags.second_is_newer.bits().to_le_bytes());
        let associated = tag_page_aad(epoch, self.id(), group, page);
        let seal = epoch.aead.seal(Nonce::random()?, &associated, &mut state)?;
        join_sealed(&mut page[HEADER_LEN..ENTRIES_AT], &seal, &state);
        Ok(())
    }

    fn parse_tag_page(&self, group: u64, page: &[u8; PAGE]) -> Option<TagPage> {
        let epoch_byte = page[EPOCH_BYTE];
        if group > 0 {
            let zero = layout::is_zero(&page[..EPOCH_BYTE])
                && epoch_byte & !STATE_EPOCH_BIT == 0
                && layout::is_zero(&page[EPOCH_BYTE + 1..HEADER_LEN]);
            if !zero {
                return None;
            }
        }
        let epoch = self.epochs[usize::from(epoch_byte & STATE_EPOCH_BIT)].as_ref()?;
        let (seal, sealed) = split_sealed(&page[HEADER_LEN..ENTRIES_AT]);
        let mut state: [u8; STATE_LEN] = array(sealed);
        let associated = tag_page_aad(epoch, self.id(), group, page);
        epoch.aead.open(&seal, &associated, &mut state).ok()?;
        Some(TagPage {
            entries: Box::new(array(&page[ENTRIES_AT..])),
            written: Entries::from_bits(u64::from_le_bytes(array(&state[..8])))?,
            second_is_newer: Entries::from_bits(u64::from_le_bytes(array(&state[8..])))?,
        })
    }

    /// Seals a page; the seal is counted already.
    pub(crate) fn seal_page(
        &self,
        domain: Domain,
        number: u64,
        data: &mut [u8],
    ) -> Result<Slot, FormatError> {
        let len = u16::try_from(data.len()).unwrap_or(u16::MAX);
        if !(1..=PAGE).contains(&usize::from(len)) {
            return Err(FormatError::TooLong { what: "a block", limit: PAGE as u64 });
        }
        let epoch = self.current()?;
        let associated = aad(domain, epoch.head.key, self.id(), number, data.len());
        let seal: Seal = epoch.aead.seal(Nonce::random()?, &associated, data)?;
        Ok(Slot { seal, len, epoch: self.sealed.current })
    }

    pub(crate) fn open_page(
        &self,
        domain: Domain,
        number: u64,
        data: &mut [u8],
        slot: &Slot,
    ) -> bool {
        let Some(epoch) = &self.epochs[slot.epoch] else { return false };
        let associated = aad(domain, epoch.head.key, self.id(), number, data.len());
        slot.block_len() == data.len() && epoch.aead.open(&slot.seal, &associated, data).is_ok()
    }

    pub(crate) fn take_seals(&self, seals: usize) -> Result<(), FormatError> {
        self.current()?.budget.take(seals as u64)
    }

    pub(crate) const fn current_epoch(&self) -> usize {
        self.sealed.current
    }

    pub(crate) fn key_of(&self, epoch: usize) -> Option<KeyId> {
        self.open_part.epochs[epoch].map(|head| head.key)
    }

    /// The epoch that is in use and not current.
    pub(crate) const fn former(&self) -> Option<usize> {
        let other = 1 - self.sealed.current;
        if self.open_part.epochs[other].is_some() { Some(other) } else { None }
    }

    pub(crate) fn clear_former(&mut self) {
        let other = 1 - self.sealed.current;
        self.open_part.epochs[other] = None;
        self.epochs[other] = None;
        self.sealed.reserved[other] = 0;
    }

    /// The epoch under which new seals are made. `create_file` and `open_file` see to it that there
    /// is one.
    fn current(&self) -> Result<&Epoch, FormatError> {
        self.epochs[self.sealed.current].as_ref().ok_or(FormatError::Header)
    }
}

impl fmt::Debug for FileCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileCipher({:?}, {:?}, [redacted])", self.id(), self.state())
    }
}

/// Bit 0 of [`EPOCH_BYTE`].
const STATE_EPOCH_BIT: u8 = 1;
/// Bytes of a tag page's sealed state: which entries are written, which slot of each is the newer.
const STATE_LEN: usize = 16;
const _: () = assert!(HEADER_LEN + SEAL_LEN + STATE_LEN == ENTRIES_AT);

/// The associated data of a tag page's state: all entries follow the usual parts, so every byte of
/// a tag page is authentic.
fn tag_page_aad(
    epoch: &Epoch,
    file: FileId,
    group: u64,
    page: &[u8; PAGE],
) -> [u8; AAD_LEN + ENTRIES_LEN] {
    let mut all = [0; AAD_LEN + ENTRIES_LEN];
    let (fixed, entries) = all.split_at_mut(AAD_LEN);
    fixed.copy_from_slice(&aad(Domain::TagPage, epoch.head.key, file, group, STATE_LEN));
    entries.copy_from_slice(&page[ENTRIES_AT..]);
    all
}

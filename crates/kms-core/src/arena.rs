//! Where filesystem keys lie in memory: one arena of locked pages.
//!
//! Pages are locked (`mlock(2)`), left out of core dumps (`MADV_DONTDUMP`) and kept from a forked
//! child (`MADV_DONTFORK`); a slot is zeroized when its key is dropped. Keys are packed into
//! shared pages because `RLIMIT_MEMLOCK` counts pages: ten thousand keys take 320 KiB.
//! When the limit does not allow locking the arena works unlocked, and [`arena_is_locked`] says so.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memmap2::{Advice, MmapMut};
use zeroize::{Zeroize, Zeroizing};

use crate::{KeyId, KmsError, KmsErrorKind};

/// Length of a filesystem key in bytes.
pub const KEY_LEN: usize = 32;

/// Bytes in one chunk of the arena; a whole number of pages on every platform with pages up to 64 KiB.
const CHUNK_LEN: usize = 64 * 1024;
const SLOTS: usize = CHUNK_LEN / KEY_LEN;

static ARENA: Mutex<Vec<Arc<Chunk>>> = Mutex::new(Vec::new());

/// One filesystem key (FSK): 32 random bytes and the id that names them.
///
/// There is no `Clone`, no `Serialize` and no readable `Debug`; share it by `Arc`. Any number of
/// threads may read it at once.
pub struct FilesystemKey {
    id: KeyId,
    chunk: Arc<Chunk>,
    slot: usize,
}

impl FilesystemKey {
    /// A new key from the operating system's random generator.
    ///
    /// # Errors
    /// [`KmsErrorKind::Internal`] when the system gives no random bytes or no memory.
    pub fn generate() -> Result<Self, KmsError> {
        let mut bytes = Zeroizing::new([0; KEY_LEN]);
        getrandom::fill(bytes.as_mut_slice()).map_err(|e| {
            KmsError::new(KmsErrorKind::Internal, "the system gives no random bytes").because(e)
        })?;
        Self::from_bytes(KeyId::random(), &bytes)
    }

    /// The key with these bytes, copied into the arena; the caller wipes its own.
    ///
    /// # Errors
    /// [`KmsErrorKind::Internal`] when the system gives no memory.
    pub fn from_bytes(id: KeyId, bytes: &[u8; KEY_LEN]) -> Result<Self, KmsError> {
        let (chunk, slot) = allocate()?;
        let key = Self { id, chunk, slot };
        key.chunk.with(key.slot, |place| place.copy_from_slice(bytes));
        Ok(key)
    }

    /// The key's id.
    pub const fn id(&self) -> KeyId {
        self.id
    }

    /// Shows the 32 bytes to `f`, the only way to see them. `f` derives what it needs and keeps no copy.
    pub fn expose<R>(&self, f: impl FnOnce(&[u8; KEY_LEN]) -> R) -> R {
        let mut copy = Zeroizing::new([0; KEY_LEN]);
        self.chunk.with(self.slot, |place| copy.copy_from_slice(place));
        f(&copy)
    }
}

impl fmt::Debug for FilesystemKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FilesystemKey({}, [redacted])", self.id)
    }
}

impl Drop for FilesystemKey {
    fn drop(&mut self) {
        self.chunk.with(self.slot, |place| place.zeroize());
        self.chunk.lock().free.push(self.slot);
    }
}

/// Whether every page that holds keys is locked in memory (true while there is none).
pub fn arena_is_locked() -> bool {
    chunks().iter().all(|chunk| chunk.locked)
}

struct Chunk {
    state: Mutex<ChunkState>,
    locked: bool,
}

struct ChunkState {
    pages: MmapMut,
    free: Vec<usize>,
}

impl Chunk {
    fn map() -> std::io::Result<Self> {
        let pages = MmapMut::map_anon(CHUNK_LEN)?;
        let locked = pages.lock().is_ok();
        // Best effort: kernels without these advices still get the lock and the zeroizing.
        let _ = pages.advise(Advice::DontDump);
        let _ = pages.advise(Advice::DontFork);
        let free = (0..SLOTS).rev().collect();
        Ok(Self { state: Mutex::new(ChunkState { pages, free }), locked })
    }

    fn lock(&self) -> MutexGuard<'_, ChunkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<R>(&self, slot: usize, f: impl FnOnce(&mut [u8]) -> R) -> R {
        f(&mut self.lock().pages[slot * KEY_LEN..][..KEY_LEN])
    }
}

fn chunks() -> MutexGuard<'static, Vec<Arc<Chunk>>> {
    ARENA.lock().unwrap_or_else(PoisonError::into_inner)
}

fn allocate() -> Result<(Arc<Chunk>, usize), KmsError> {
    let mut chunks = chunks();
    for chunk in chunks.iter() {
        if let Some(slot) = chunk.lock().free.pop() {
            return Ok((Arc::clone(chunk), slot));
        }
    }
    let chunk = Arc::new(Chunk::map().map_err(|e| {
        KmsError::new(KmsErrorKind::Internal, "no memory for filesystem keys").because(e)
    })?);
    // A chunk starts with every slot free.
    let slot = chunk.lock().free.pop().unwrap_or_default();
    chunks.push(Arc::clone(&chunk));
    Ok((chunk, slot))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_their_bytes_apart_over_many_chunks() {
        let keys: Vec<_> = (0..3 * SLOTS as u32)
            .map(|n| {
                let mut bytes = [0; KEY_LEN];
                bytes[..4].copy_from_slice(&n.to_le_bytes());
                FilesystemKey::from_bytes(KeyId::random(), &bytes).unwrap()
            })
            .collect();
        for (n, key) in keys.iter().enumerate() {
            key.expose(|bytes| assert_eq!(bytes[..4], (n as u32).to_le_bytes()));
        }
    }

    #[test]
    fn a_dropped_key_leaves_zeros() {
        // A chunk of its own: no other test takes the slot meanwhile.
        let chunk = Arc::new(Chunk::map().unwrap());
        let slot = chunk.lock().free.pop().unwrap();
        let key = FilesystemKey { id: KeyId::random(), chunk: Arc::clone(&chunk), slot };
        chunk.with(slot, |place| place.fill(7));
        drop(key);
        let state = chunk.lock();
        assert!(state.free.contains(&slot));
        assert_eq!(state.pages[slot * KEY_LEN..][..KEY_LEN], [0; KEY_LEN]);
    }

    #[test]
    fn debug_shows_no_byte() {
        // Not a random id: one may have "171" in it.
        let id = "00000000-0000-4000-8000-000000000000".parse().unwrap();
        let key = FilesystemKey::from_bytes(id, &[0xab; KEY_LEN]).unwrap();
        let shown = format!("{key:?}");
        assert!(shown.contains("redacted") && !shown.contains("171") && !shown.contains("abab"));
    }
}

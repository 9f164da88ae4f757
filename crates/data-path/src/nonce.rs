//! Nonces: 96 random bits, made here and nowhere else.
//!
//! They are drawn from aws-lc's generator, which the operating system seeds and which is safe over
//! `fork(2)`. One draw costs as much as sealing a block, so each thread draws a page of nonces at
//! once. That page is kept from a forked child (`MADV_DONTFORK`): a child that went on sealing with
//! its parent's nonces would be killed by the memory fault instead. Where the page can't be had,
//! each nonce is drawn by itself. (Of a virtual machine that is cloned while it runs, both copies
//! have the same page and the same keys in memory: no generator in a process can tell.)

use std::cell::RefCell;

use memmap2::{Advice, MmapMut};

use crate::FormatError;

pub(crate) const NONCE_LEN: usize = 12;
const POOL_LEN: usize = 4096;

/// A nonce that was never used: it can't be copied, and sealing consumes it.
pub(crate) struct Nonce([u8; NONCE_LEN]);

impl Nonce {
    /// A new one.
    pub(crate) fn random() -> Result<Self, FormatError> {
        #[cfg(test)]
        if fixed::is_on() {
            return random().map(Self);
        }
        POOL.with_borrow_mut(Pool::draw).map(Self)
    }

    /// The nonce of a known test vector.
    #[cfg(test)]
    pub(crate) const fn of_vector(bytes: [u8; NONCE_LEN]) -> Self {
        Self(bytes)
    }

    pub(crate) const fn into_bytes(self) -> [u8; NONCE_LEN] {
        self.0
    }
}

/// Random bytes for an id or a salt.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], FormatError> {
    let mut bytes = [0; N];
    fill(&mut bytes)?;
    Ok(bytes)
}

fn fill(bytes: &mut [u8]) -> Result<(), FormatError> {
    #[cfg(test)]
    if fixed::fill(bytes) {
        return Ok(());
    }
    aws_lc_rs::rand::fill(bytes)
        .map_err(|_| FormatError::Library("the system gives no random bytes"))
}

thread_local! {
    static POOL: RefCell<Pool> = RefCell::new(Pool::new());
}

struct Pool {
    page: Option<MmapMut>,
    /// Where the first unused nonce starts.
    next: usize,
}

impl Pool {
    fn new() -> Self {
        let page = MmapMut::map_anon(POOL_LEN).ok();
        let page = page.filter(|page| page.advise(Advice::DontFork).is_ok());
        Self { page, next: POOL_LEN }
    }

    fn draw(&mut self) -> Result<[u8; NONCE_LEN], FormatError> {
        let Some(page) = &mut self.page else { return random() };
        if self.next + NONCE_LEN > POOL_LEN {
            fill(page)?;
            self.next = 0;
        }
        let mut nonce = [0; NONCE_LEN];
        nonce.copy_from_slice(&page[self.next..][..NONCE_LEN]);
        self.next += NONCE_LEN;
        Ok(nonce)
    }
}

/// Known bytes in place of random ones, for golden vectors.
#[cfg(test)]
pub(crate) mod fixed {
    use std::cell::Cell;

    thread_local! {
        static NEXT: Cell<Option<u8>> = const { Cell::new(None) };
    }

    /// Runs `f` with draws that are 1, 1, 1, …, then 2, 2, 2, …, and so on.
    pub(crate) fn run<R>(f: impl FnOnce() -> R) -> R {
        NEXT.set(Some(1));
        let result = f();
        NEXT.set(None);
        result
    }

    pub(super) fn is_on() -> bool {
        NEXT.get().is_some()
    }

    pub(super) fn fill(bytes: &mut [u8]) -> bool {
        let Some(next) = NEXT.get() else { return false };
        bytes.fill(next);
        NEXT.set(Some(next.checked_add(1).unwrap()));
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn nonces_do_not_repeat_over_refills_and_threads() {
        let draw = || (0..5_000).map(|_| Nonce::random().unwrap().into_bytes()).collect::<Vec<_>>();
        let threads = [(); 3].map(|()| std::thread::spawn(draw));
        let all: Vec<_> = threads.into_iter().flat_map(|t| t.join().unwrap()).collect();
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
        // 15,000 draws of a fair byte: every value occurs at every place of the nonce.
        for place in 0..NONCE_LEN {
            assert_eq!(all.iter().map(|n| n[place]).collect::<HashSet<_>>().len(), 256);
        }
    }

    #[test]
    fn without_a_page_each_nonce_is_drawn_by_itself() {
        let mut pool = Pool { page: None, next: POOL_LEN };
        assert_ne!(pool.draw().unwrap(), pool.draw().unwrap());
    }

    /// "dc" in the kernel's flags of a mapping: do not copy it on fork (proc(5), smaps).
    #[cfg(target_os = "linux")]
    #[test]
    fn the_pool_is_kept_from_a_forked_child() {
        let pool = Pool::new();
        let address = pool.page.as_ref().unwrap().as_ptr() as usize;
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        let flags = smaps.lines().find(|line| {
            let range = line.split(' ').next().and_then(|word| word.split_once('-'));
            if let Some((start, end)) = range
                && let Ok(start) = usize::from_str_radix(start, 16)
                && let Ok(end) = usize::from_str_radix(end, 16)
            {
                inside = (start..end).contains(&address);
            }
            inside && line.starts_with("VmFlags:")
        });
        assert!(flags.unwrap().split_whitespace().any(|flag| flag == "dc"), "{flags:?}");
    }
}

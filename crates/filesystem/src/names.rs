//! The names in one directory, sorted, in little memory.

use std::os::fd::AsFd;

use crate::sys::{self, Errno, Result};

/// Bytes of names with which a [`NameWalk`] goes on; it holds at most twice as many. A directory of a million files is
/// read a handful of times, which costs little beside what is done with its files.
const WINDOW: usize = 16 << 20;

/// Sorted names, so that a walk has the same order each time and can be taken up at any name.
/// They lie in one buffer: a directory of a million files takes some 30 MiB, not 80.
#[derive(Debug, Default)]
pub(crate) struct Names {
    bytes: Vec<u8>,
    /// Where each name starts, and its length.
    spans: Vec<(u32, u8)>,
}

impl Names {
    /// All names in `dir` that `wanted` takes.
    pub(crate) fn read(dir: impl AsFd, wanted: impl FnMut(&[u8]) -> bool) -> Result<Self> {
        Self::read_first(dir, usize::MAX, wanted).map(|(names, _)| names)
    }

    /// The first of the names that `wanted` takes, at least `window` bytes of them if there are so
    /// many and at most twice that; and whether others follow.
    fn read_first(
        dir: impl AsFd,
        window: usize,
        mut wanted: impl FnMut(&[u8]) -> bool,
    ) -> Result<(Self, bool)> {
        let mut names = Self::default();
        let mut first_left_out: Option<Vec<u8>> = None;
        let mut pushed = Ok(());
        sys::names(dir, |name| {
            if first_left_out.as_deref().is_some_and(|out| name >= out) || !wanted(name) {
                return;
            }
            pushed = pushed.and_then(|()| names.push(name));
            if names.size() / 2 >= window {
                first_left_out = names.keep_first(window);
            }
        })?;
        pushed?;
        names.sort();
        Ok((names, first_left_out.is_some()))
    }

    fn push(&mut self, name: &[u8]) -> Result<()> {
        let start = u32::try_from(self.bytes.len()).map_err(|_| Errno::OVERFLOW)?;
        let len = u8::try_from(name.len()).map_err(|_| Errno::OVERFLOW)?;
        self.bytes.extend_from_slice(name);
        self.spans.push((start, len));
        Ok(())
    }

    const fn size(&self) -> usize {
        self.bytes.len() + size_of::<(u32, u8)>() * self.spans.len()
    }

    fn sort(&mut self) {
        let bytes = &self.bytes;
        self.spans.sort_unstable_by_key(|&span| slice(bytes, span));
    }

    /// Keeps the first names, `size` bytes of them, and answers the next one.
    fn keep_first(&mut self, size: usize) -> Option<Vec<u8>> {
        self.sort();
        let mut kept = Self::default();
        let next = self.iter().find(|name| kept.size() >= size || kept.push(name).is_err());
        let next = next.map(<[u8]>::to_vec);
        *self = kept;
        next
    }

    pub(crate) fn get(&self, index: usize) -> Option<&[u8]> {
        self.spans.get(index).map(|&span| slice(&self.bytes, span))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.spans.iter().map(|&span| slice(&self.bytes, span))
    }

    pub(crate) fn contains(&self, name: &[u8]) -> bool {
        let at = self.spans.partition_point(|&span| slice(&self.bytes, span) < name);
        self.get(at) == Some(name)
    }
}

fn slice(bytes: &[u8], (start, len): (u32, u8)) -> &[u8] {
    &bytes[start as usize..][..usize::from(len)]
}

/// Goes through the sorted names of a directory of any size, of which it holds a part. What is made
/// or removed meanwhile may be met or not, as `readdir(3)` has it.
#[derive(Debug)]
pub(crate) struct NameWalk {
    names: Names,
    next: usize,
    /// Others follow those in `names`.
    more: bool,
    window: usize,
}

impl NameWalk {
    /// Starts at the first name that `wanted` takes.
    pub(crate) fn start(dir: impl AsFd, wanted: impl FnMut(&[u8]) -> bool) -> Result<Self> {
        Self::with_window(dir, WINDOW, wanted)
    }

    fn with_window(
        dir: impl AsFd,
        window: usize,
        wanted: impl FnMut(&[u8]) -> bool,
    ) -> Result<Self> {
        let (names, more) = Names::read_first(dir, window, wanted)?;
        Ok(Self { names, next: 0, more, window })
    }

    /// The name that the walk has come to; `None` at the end.
    pub(crate) fn get(&self) -> Option<&[u8]> {
        self.names.get(self.next)
    }

    /// Goes on to the next name; `dir` and `wanted` are those that it was started with. After an
    /// error it is at the end.
    pub(crate) fn advance(
        &mut self,
        dir: impl AsFd,
        mut wanted: impl FnMut(&[u8]) -> bool,
    ) -> Result<()> {
        self.next += 1;
        if self.more && self.get().is_none() {
            self.more = false;
            let last = self.names.iter().last().map(<[u8]>::to_vec).unwrap_or_default();
            self.names = Names::default();
            *self = Self::with_window(dir, self.window, |name| name > &*last && wanted(name))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_meets_every_name_once_and_in_order_whatever_the_window() {
        let dir = tempfile::tempdir().unwrap();
        let mut expected: Vec<String> =
            (0..500_u32).map(|n| format!("{:x}", n.wrapping_mul(0x9e37_79b9))).collect();
        for name in &expected {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        std::fs::write(dir.path().join("unwanted"), "").unwrap();
        expected.sort();
        let open = sys::open_root(dir.path()).unwrap();
        let wanted = |name: &[u8]| name != b"unwanted";
        for window in [1, 100, 1000, 8_000, 1 << 20] {
            let mut walk = NameWalk::with_window(&open, window, wanted).unwrap();
            let mut found = Vec::new();
            while let Some(name) = walk.get() {
                found.push(String::from_utf8(name.to_vec()).unwrap());
                assert!(walk.names.size() < 2 * window + 100, "{}", walk.names.size());
                walk.advance(&open, wanted).unwrap();
            }
            assert_eq!(found, expected, "window {window}");
        }
        let from = NameWalk::start(&open, |name| name >= expected[77].as_bytes()).unwrap();
        assert_eq!(from.get(), Some(expected[77].as_bytes()));
    }
}

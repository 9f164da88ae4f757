//! The names in one directory, sorted, in little memory.

use crate::sys::{self, Result};

/// Sorted names, so that a walk has the same order each time and can be taken up at any name.
/// They lie in one buffer: a directory of a million files takes some 30 MiB, not 80.
#[derive(Debug, Default)]
pub(crate) struct Names {
    bytes: Vec<u8>,
    /// Where each name starts, and its length.
    spans: Vec<(u32, u8)>,
}

impl Names {
    /// The names in `dir` that `wanted` takes.
    pub(crate) fn read(
        dir: impl std::os::fd::AsFd,
        mut wanted: impl FnMut(&[u8]) -> bool,
    ) -> Result<Self> {
        let mut names = Self::default();
        let mut too_many = false;
        sys::names(dir, |name| {
            if !wanted(name) {
                return;
            }
            match (u32::try_from(names.bytes.len()), u8::try_from(name.len())) {
                (Ok(start), Ok(len)) => {
                    names.bytes.extend_from_slice(name);
                    names.spans.push((start, len));
                }
                _ => too_many = true,
            }
        })?;
        if too_many {
            return Err(sys::Errno::OVERFLOW);
        }
        let bytes = &names.bytes;
        names.spans.sort_unstable_by_key(|&span| slice(bytes, span));
        Ok(names)
    }

    pub(crate) fn get(&self, index: usize) -> Option<&[u8]> {
        self.spans.get(index).map(|&span| slice(&self.bytes, span))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.spans.iter().map(|&span| slice(&self.bytes, span))
    }

    pub(crate) fn contains(&self, name: &[u8]) -> bool {
        self.get(self.position(name)) == Some(name)
    }

    /// The index of `name`, or of the first name after it.
    pub(crate) fn position(&self, name: &[u8]) -> usize {
        self.spans.partition_point(|&span| slice(&self.bytes, span) < name)
    }
}

fn slice(bytes: &[u8], (start, len): (u32, u8)) -> &[u8] {
    &bytes[start as usize..][..usize::from(len)]
}

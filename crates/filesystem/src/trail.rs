//! Where an entry lies, told by its way down from the tree's root.
//!
//! Nested directories that each had their path would take memory by the square of their depth: 1.2 GB for 2,500
//! levels with names of 200 bytes. Here each has its own names, and shares those above. A path is put together when a
//! problem needs it.

use std::sync::Arc;

/// An entry's names, raw and plain, and those on the way to it.
#[derive(Debug)]
pub(crate) struct Trail {
    above: Option<Arc<Self>>,
    raw: Vec<u8>,
    /// Empty where it is not known, and for the root.
    plain: Vec<u8>,
}

impl Trail {
    /// That of a tree's root, whose raw path is this.
    pub(crate) fn root(raw: &[u8]) -> Arc<Self> {
        Arc::new(Self { above: None, raw: raw.to_vec(), plain: Vec::new() })
    }

    /// That of an entry in this directory.
    pub(crate) fn entry(self: &Arc<Self>, raw: &[u8], plain: &[u8]) -> Self {
        Self { above: Some(Arc::clone(self)), raw: raw.to_vec(), plain: plain.to_vec() }
    }

    /// The entry's own raw name.
    pub(crate) fn raw_name(&self) -> &[u8] {
        &self.raw
    }

    /// The path of raw names.
    pub(crate) fn raw(&self) -> Vec<u8> {
        self.path(|trail| &trail.raw)
    }

    /// The path of plain names.
    pub(crate) fn plain(&self) -> Vec<u8> {
        self.path(|trail| &trail.plain)
    }

    fn path(&self, name: impl Fn(&Self) -> &[u8]) -> Vec<u8> {
        let upwards = std::iter::successors(Some(self), |trail| trail.above.as_deref());
        let mut names: Vec<&[u8]> = upwards.map(name).filter(|name| !name.is_empty()).collect();
        names.reverse();
        names.join(&b'/')
    }
}

impl Drop for Trail {
    /// One by one: each dropped inside the one below it would take stack by the depth.
    fn drop(&mut self) {
        let mut above = self.above.take();
        while let Some(trail) = above {
            above = Arc::into_inner(trail).and_then(|mut trail| trail.above.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_put_together_from_the_names_that_are_known() {
        let root = Trail::root(b"root");
        assert_eq!((root.raw(), root.plain()), (b"root".to_vec(), b"".to_vec()));
        let dir = Arc::new(root.entry(b"e1", b"dir"));
        let file = dir.entry(b"e2", b"file");
        assert_eq!((file.raw(), file.plain()), (b"root/e1/e2".to_vec(), b"dir/file".to_vec()));
        assert_eq!(dir.entry(b"stray", b"").plain(), b"dir");
        assert_eq!(Trail::root(b"").entry(b"name", b"name").raw(), b"name");
    }

    #[test]
    fn the_deepest_trail_is_dropped_in_little_stack() {
        let drop_deep = || {
            let mut trail = Trail::root(b"root");
            for _ in 0..1_000_000 {
                trail = Arc::new(trail.entry(b"e", b"d"));
            }
        };
        let small = std::thread::Builder::new().stack_size(64 << 10);
        small.spawn(drop_deep).unwrap().join().unwrap();
    }
}

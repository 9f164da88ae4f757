//! The two sides of a copy: where a tree is read from, and where it is written to.
//!
//! Import reads a plain tree and writes a sealed one, export the other way round; the engine
//! between them ([`crate::copy`]) knows neither. Each side says how a name, a link target, an
//! attribute and a segment of content look on it.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use data_path::Node;

use crate::error::Fault;
use crate::report::Unfinished;
use crate::sys::{Inode, Stat, Xattr};

/// Groups of the sealed form that are read, sealed and written in one piece: a segment, nearly 4 MiB.
pub(crate) const SEGMENT_GROUPS: u64 = 16;

/// The plain bytes of segment `index` in a file of `len` bytes.
pub(crate) fn segment(index: u64, len: u64) -> Range<u64> {
    let first = index * SEGMENT_GROUPS;
    let start = data_path::layout::group_data(first, len).start;
    start..data_path::layout::group_data(first + SEGMENT_GROUPS - 1, len).end
}

/// How many segments a file of `len` bytes has; an empty one has one.
pub(crate) const fn segments(len: u64) -> u64 {
    data_path::layout::group_count(len).div_ceil(SEGMENT_GROUPS)
}

/// What an entry of a tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
    Symlink,
    /// A FIFO or a device.
    Node,
    Socket,
}

/// An open directory, and what its side knows of it.
#[derive(Debug)]
pub(crate) struct Place<D> {
    pub(crate) fd: OwnedFd,
    pub(crate) dir: D,
}

/// A worker's memory: one segment in the plain, and one sealed.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    pub(crate) plain: Vec<u8>,
    pub(crate) sealed: Vec<u8>,
}

/// What an attribute belongs to.
pub(crate) enum Owner<'a, S: Side + ?Sized> {
    Directory(&'a Place<S::Dir>),
    File(&'a S::File),
    /// A link or a node, by name in the directory whose handle this is.
    Named(BorrowedFd<'a>, &'a [u8]),
}

impl<S: Side + ?Sized> Owner<'_, S> {
    pub(crate) fn inode(&self) -> Inode<'_> {
        match self {
            Self::Directory(place) => Inode::Open(place.fd.as_fd()),
            Self::File(file) => Inode::Open(file.as_fd()),
            Self::Named(dir, name) => Inode::Named(*dir, name),
        }
    }
}

/// What both sides have.
pub(crate) trait Side: Sync {
    /// What a side knows of a directory besides its handle.
    type Dir: Send + Sync;
    /// An open file.
    type File: AsFd + Send + Sync;
}

/// Where a tree is read from. *Raw* names are those in the directory itself.
pub(crate) trait Source: Side {
    /// Whether raw names are ciphertext, and worth telling beside the plain ones.
    const SEALED: bool;
    /// The raw path of the tree's root, as problems tell it.
    const ROOT: &[u8];

    /// What its raw names, in whose order a tree is walked, depend on: a walk can go on where another one was only if it
    /// is the same.
    fn order(&self) -> Option<String> {
        None
    }
    fn root(&self) -> Result<Place<Self::Dir>, Fault>;
    /// What the entry with this `stat` is.
    fn kind(&self, stat: &Stat) -> Result<Kind, Fault>;
    /// Whether a raw name is an entry, not one of the side's own files.
    fn is_entry(&self, dir: &Place<Self::Dir>, raw: &[u8]) -> bool;
    /// Whether a raw name is that of something that Coffer did not put where it keeps its own.
    fn is_foreign(&self, _raw: &[u8]) -> bool {
        false
    }
    fn plain_name(&self, dir: &Place<Self::Dir>, raw: &[u8]) -> Result<Vec<u8>, Fault>;
    fn enter(&self, dir: &Place<Self::Dir>, raw: &[u8]) -> Result<Place<Self::Dir>, Fault>;
    fn open(&self, dir: &Place<Self::Dir>, raw: &[u8], stat: &Stat) -> Result<Self::File, Fault>;
    /// Plain length of the file with this `stat`, as well as can be told without opening it.
    fn estimate(&self, stat: &Stat) -> u64;
    /// Plain length.
    fn len(&self, file: &Self::File) -> u64;
    /// Puts segment `index` into `buffers.plain`, which gets its length, and answers where in it
    /// data lies; the rest is holes.
    fn read(
        &self,
        file: &Self::File,
        index: u64,
        buffers: &mut Buffers,
    ) -> Result<Vec<Range<usize>>, Fault>;
    /// Confirms that what was read is what the file was when it was opened.
    fn confirm(&self, file: &Self::File) -> Result<(), Fault>;
    fn target(&self, dir: &Place<Self::Dir>, raw: &[u8]) -> Result<Vec<u8>, Fault>;
    fn node(&self, dir: &Place<Self::Dir>, raw: &[u8], stat: &Stat) -> Result<Node, Fault>;
    /// The plain form of an attribute; `None` for one of the side's own.
    fn plain_xattr(&self, of: &Owner<'_, Self>, raw: Xattr) -> Result<Option<Xattr>, Fault>;
}

/// Where a tree is written to.
pub(crate) trait Sink: Side {
    fn root(&self) -> Result<Place<Self::Dir>, Fault>;
    /// Opens the directory `name`, or makes it; it is whole from the moment it has its name. Its owner can change what is
    /// in it: the mode of a read-only one is given when its entries are done.
    fn make_dir(&self, parent: &Place<Self::Dir>, name: &[u8]) -> Result<Place<Self::Dir>, Fault>;
    /// The name under which an entry lies in `dir`, readable from now on.
    fn raw_name(&self, dir: &Place<Self::Dir>, name: &[u8]) -> Result<Vec<u8>, Fault>;
    /// Begins the content of a new file of `len` plain bytes in the empty `file`.
    fn begin(&self, file: OwnedFd, len: u64) -> Result<Self::File, Fault>;
    /// Goes on with a file that was begun before a stop, and has all segments below `first`.
    fn resume(
        &self,
        file: OwnedFd,
        len: u64,
        first: u64,
        unfinished: &Unfinished,
    ) -> Result<Self::File, Fault>;
    /// What [`Sink::resume`] has to be told of the file, as far as it is written.
    fn unfinished(&self, file: &Self::File) -> Unfinished;
    /// Writes segment `index`; segments come in any order, several at once.
    fn write(
        &self,
        file: &Self::File,
        index: u64,
        data: &[Range<usize>],
        buffers: &mut Buffers,
    ) -> Result<(), Fault>;
    /// Ends the content.
    fn end(&self, file: &Self::File) -> Result<(), Fault>;
    fn raw_target(&self, dir: &Place<Self::Dir>, target: &[u8]) -> Result<Vec<u8>, Fault>;
    /// Makes a FIFO or device under a name in the stage.
    fn make_node(&self, dir: &OwnedFd, name: &[u8], node: Node) -> Result<(), Fault>;
    /// What an entry that is about to be replaced keeps elsewhere, for [`Sink::forget`].
    fn kept_elsewhere(&self, _: &Place<Self::Dir>, _raw: &[u8]) -> Option<String> {
        None
    }
    /// Removes what a replaced entry kept elsewhere. What a failure leaves, `verify` finds.
    fn forget(&self, _: &str) {}
    fn raw_xattr(&self, of: &Owner<'_, Self>, plain: Xattr) -> Result<Xattr, Fault>;
    /// Whether an attribute with this raw name is one that a copy gave, not one of the target's own.
    fn gives_xattr(&self, raw: &[u8]) -> bool;
}

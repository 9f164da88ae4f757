//! The plain side: what import reads, and what export writes.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use data_path::Node;

use crate::error::{Doing, Fault};
use crate::report::{Identity, Unfinished};
use crate::side::{Buffers, Kind, Owner, Place, Side, Sink, Source, segment, segments};
use crate::stage::{InodeId, Stage};
use crate::sys::{self, Errno, FileType, Stat, Xattr};

/// Holes are kept in units of this many bytes.
const BLOCK: usize = 4096;

/// The most that is read of a file to find its length: some of the kernel's have no end that anybody would wait for.
const MEASURED_MAX: u64 = 1 << 30;

/// A plain tree that is imported.
pub(crate) struct PlainSource {
    root: OwnedFd,
    /// The backing directory, which a source above it would have below it.
    avoid: InodeId,
}

impl PlainSource {
    pub(crate) const fn new(root: OwnedFd, avoid: InodeId) -> Self {
        Self { root, avoid }
    }
}

/// An open plain file.
pub(crate) struct PlainFile {
    fd: OwnedFd,
    identity: Identity,
    len: u64,
    sparse: bool,
}

impl AsFd for PlainFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Side for PlainSource {
    type Dir = ();
    type File = PlainFile;
}

impl Source for PlainSource {
    const SEALED: bool = false;
    const ROOT: &[u8] = b"";

    fn root(&self) -> Result<Place<()>, Fault> {
        Ok(Place { fd: sys::open_dir(&self.root, b".").doing("opened")?, dir: () })
    }

    fn kind(&self, stat: &Stat) -> Result<Kind, Fault> {
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Kind::Directory,
            FileType::RegularFile => Kind::File,
            FileType::Symlink => Kind::Symlink,
            FileType::Socket => Kind::Socket,
            _ => Kind::Node,
        })
    }

    fn is_entry(&self, _: &Place<()>, _: &[u8]) -> bool {
        true
    }

    fn plain_name(&self, _: &Place<()>, raw: &[u8]) -> Result<Vec<u8>, Fault> {
        Ok(raw.to_vec())
    }

    fn enter(&self, dir: &Place<()>, raw: &[u8]) -> Result<Place<()>, Fault> {
        let fd = sys::open_dir(&dir.fd, raw).doing("opened")?;
        let stat = sys::stat_open(&fd).doing("read")?;
        if (stat.st_dev, stat.st_ino) == self.avoid {
            return Err(Fault::Conflict("it is the backing directory of this filesystem"));
        }
        Ok(Place { fd, dir: () })
    }

    fn open(&self, dir: &Place<()>, raw: &[u8], stat: &Stat) -> Result<PlainFile, Fault> {
        let fd = sys::open_file(&dir.fd, raw).doing("opened")?;
        let told = self.estimate(stat);
        let allocated = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
        // What /proc, sysfs and some mounts say of a file's length is not what it has, nor do they know of holes.
        let is_true = allocated > 0 || ends_at(&fd, told);
        let len = if is_true { told } else { measure(&fd)? };
        // A large file's own metadata may hide a hole in this sum; asking costs it little.
        let sparse = is_true && (allocated < len || segments(len) > 1);
        Ok(PlainFile { fd, identity: Identity::of(stat), len, sparse })
    }

    fn estimate(&self, stat: &Stat) -> u64 {
        u64::try_from(stat.st_size).unwrap_or(0)
    }

    fn len(&self, file: &PlainFile) -> u64 {
        file.len
    }

    fn read(
        &self,
        file: &PlainFile,
        index: u64,
        buffers: &mut Buffers,
    ) -> Result<Vec<Range<usize>>, Fault> {
        let Range { start, end } = segment(index, file.len);
        let len = (end - start) as usize;
        let is_last = end == file.len;
        let mut data: Vec<Range<usize>> = Vec::new();
        if !file.sparse {
            // Room for more than there should be, to see the end.
            buffers.plain.resize(len + if is_last { BLOCK } else { 0 }, 0);
            let got = sys::read_at(file, &mut buffers.plain, start).doing("read")?;
            buffers.plain.truncate(len);
            data.push(0..len);
            return if got == len { Ok(data) } else { Err(Fault::Changed) };
        }
        buffers.plain.resize(len, 0);
        let mut at = start;
        while at < end {
            let found = sys::next_data(file, at).doing("read")?.filter(|(from, _)| *from < end);
            let Some((from, to)) = found else { break };
            // Whole blocks of ours, whatever the source's are: a hole within one reads as zeros.
            let first = (from - start) as usize / BLOCK * BLOCK;
            let last = ((to.min(end) - start) as usize).next_multiple_of(BLOCK).min(len);
            let first = first.max(data.last().map_or(0, |range| range.end));
            if first < last {
                read_exact(file, &mut buffers.plain[first..last], start + first as u64)?;
                match data.last_mut() {
                    Some(range) if range.end == first => range.end = last,
                    _ => data.push(first..last),
                }
            }
            at = to;
        }
        if is_last && has_bytes(file, end).doing("read")? {
            return Err(Fault::Changed);
        }
        Ok(data)
    }

    fn confirm(&self, file: &PlainFile) -> Result<(), Fault> {
        let now = Identity::of(&sys::stat_open(file).doing("read")?);
        if now == file.identity { Ok(()) } else { Err(Fault::Changed) }
    }

    fn target(&self, dir: &Place<()>, raw: &[u8]) -> Result<Vec<u8>, Fault> {
        sys::read_link(&dir.fd, raw).doing("read")
    }

    fn node(&self, _: &Place<()>, _: &[u8], stat: &Stat) -> Result<Node, Fault> {
        sys::node(stat).ok_or_else(|| Fault::Refused {
            doing: "read",
            why: "it is of a type that this program does not know".to_owned(),
            cure: "leave it out",
        })
    }

    fn plain_xattr(&self, _: &Owner<'_, Self>, raw: Xattr) -> Result<Option<Xattr>, Fault> {
        Ok(Some(raw))
    }
}

/// Whether anything can be read there. Some of the kernel's files put nothing into little room.
fn has_bytes(file: impl AsFd, at: u64) -> sys::Result<bool> {
    Ok(sys::read_at(file, &mut [0; BLOCK], at)? > 0)
}

/// Whether the content ends there. What can't be read there will say so when all of it is.
fn ends_at(file: &OwnedFd, len: u64) -> bool {
    has_bytes(file, len) == Ok(false) && (len == 0 || has_bytes(file, len - 1) == Ok(true))
}

/// The length of the content, by reading all of it.
fn measure(file: &OwnedFd) -> Result<u64, Fault> {
    let mut buffer = vec![0; 1 << 20];
    let mut len = 0;
    loop {
        match sys::read_at(file, &mut buffer, len).doing("read")? as u64 {
            0 => return Ok(len),
            _ if len >= MEASURED_MAX => {
                return Err(Fault::Refused {
                    doing: "read",
                    why: "the system tells no length for it, and it goes on after 1 GiB".to_owned(),
                    cure: "leave it out, or copy it into a plain file first",
                });
            }
            got => len += got,
        }
    }
}

fn read_exact(file: &PlainFile, buffer: &mut [u8], at: u64) -> Result<(), Fault> {
    let got = sys::read_at(file, buffer, at).doing("read")?;
    if got == buffer.len() { Ok(()) } else { Err(Fault::Changed) }
}

/// A plain tree that an export writes.
pub(crate) struct PlainSink<'a> {
    root: OwnedFd,
    stage: &'a Stage,
}

impl<'a> PlainSink<'a> {
    pub(crate) const fn new(root: OwnedFd, stage: &'a Stage) -> Self {
        Self { root, stage }
    }
}

/// A file that an export writes.
pub(crate) struct PlainOutput {
    fd: OwnedFd,
    len: u64,
    /// How far it was written.
    end: AtomicU64,
}

impl AsFd for PlainOutput {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Side for PlainSink<'_> {
    type Dir = ();
    type File = PlainOutput;
}

impl Sink for PlainSink<'_> {
    fn root(&self) -> Result<Place<()>, Fault> {
        sys::give_owner_s_rights(&self.root).doing("written")?;
        Ok(Place { fd: sys::open_dir(&self.root, b".").doing("opened")?, dir: () })
    }

    fn make_dir(&self, parent: &Place<()>, name: &[u8]) -> Result<Place<()>, Fault> {
        let fd = match sys::open_to_change(&parent.fd, name) {
            Err(Errno::NOENT) => {
                let (tmp, staged) = (self.stage.tmp(), self.stage.fresh());
                sys::make_dir(tmp, &staged).doing("written")?;
                sys::rename(tmp, &staged, &parent.fd, name).doing("written")?;
                sys::open_dir(&parent.fd, name)
            }
            Err(Errno::NOTDIR | Errno::LOOP) => {
                return Err(Fault::Conflict("something that is no directory has its name"));
            }
            other => other,
        };
        Ok(Place { fd: fd.doing("opened")?, dir: () })
    }

    fn raw_name(&self, _: &Place<()>, name: &[u8]) -> Result<Vec<u8>, Fault> {
        Ok(name.to_vec())
    }

    fn begin(&self, fd: OwnedFd, len: u64) -> Result<PlainOutput, Fault> {
        Ok(PlainOutput { fd, len, end: AtomicU64::new(0) })
    }

    fn resume(
        &self,
        file: OwnedFd,
        len: u64,
        _: u64,
        _: &Unfinished,
    ) -> Result<PlainOutput, Fault> {
        self.begin(file, len)
    }

    fn unfinished(&self, _: &PlainOutput) -> Unfinished {
        Unfinished::default()
    }

    fn write(
        &self,
        file: &PlainOutput,
        index: u64,
        data: &[Range<usize>],
        buffers: &mut Buffers,
    ) -> Result<(), Fault> {
        let start = segment(index, file.len).start;
        for range in data {
            let bytes = &buffers.plain[range.clone()];
            sys::write_at(file, bytes, start + range.start as u64).doing("written")?;
            file.end.fetch_max(start + range.end as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    fn end(&self, file: &PlainOutput) -> Result<(), Fault> {
        if file.end.load(Ordering::Relaxed) == file.len {
            return Ok(());
        }
        // The last part is a hole (or was written before a stop).
        sys::set_len(file, file.len).doing("written")
    }

    fn raw_target(&self, _: &Place<()>, target: &[u8]) -> Result<Vec<u8>, Fault> {
        Ok(target.to_vec())
    }

    fn make_node(&self, dir: &OwnedFd, name: &[u8], node: Node) -> Result<(), Fault> {
        sys::make_node(dir, name, node).doing("made (a device needs root)")
    }

    fn raw_xattr(&self, _: &Owner<'_, Self>, plain: Xattr) -> Result<Xattr, Fault> {
        Ok(plain)
    }

    fn gives_xattr(&self, raw: &[u8]) -> bool {
        raw.starts_with(b"user.") || sys::is_acl(raw)
    }
}

//! The sealed side: how a tree lies in the backing directory, which import writes and export reads.
//!
//! Each directory has a record of its id (`coffer.dir`), which its names are bound to. A name whose
//! ciphertext is too long for a name has a side file; a link's target whose ciphertext is too long
//! has a record in `coffer.links`. Files are [`crate::sealed_file`]'s. `docs/formats.md` specifies all of them.

use std::ops::Range;
use std::os::fd::OwnedFd;

use data_path::layout;
use data_path::xattr::BACKING_PREFIX;
use data_path::{BackingEntry, DirId, Node, XattrOwner, dir, symlink};

use crate::error::{Doing, Fault, shown};
use crate::keys::TreeKeys;
use crate::names::Names;
use crate::report::Unfinished;
use crate::sealed_file::SealedFile;
use crate::side::{Buffers, Kind, Owner, Place, Side, Sink, Source};
use crate::stage::Stage;
use crate::sys::{self, Errno, FileType, Stat, Xattr};

/// The ciphertext tree of an open filesystem.
#[derive(Debug)]
pub(crate) struct SealedTree {
    pub(crate) keys: TreeKeys,
    /// The root of the tree.
    pub(crate) root: OwnedFd,
    /// Long link targets.
    pub(crate) links: OwnedFd,
    pub(crate) stage: Stage,
}

impl Side for SealedTree {
    type Dir = DirId;
    type File = SealedFile;
}

impl SealedTree {
    /// Opens the root, whose id does not depend on its record.
    pub(crate) fn open_root(&self) -> Result<Place<DirId>, Fault> {
        let fd = sys::open_dir(&self.root, b".").doing("opened")?;
        Ok(Place { fd, dir: self.keys.current.root_directory() })
    }

    /// Shows that the key is this tree's: by the root's record, or when that is lost by any name in the root. A root
    /// without record and names shows nothing; then it counts whether the backing directory is `named` after the key.
    pub(crate) fn prove_key(&self, named: bool) -> Result<(), Fault> {
        let lost = match self.check_root_record() {
            Ok(()) => return Ok(()),
            Err(newer @ Fault::Refused { .. }) => return Err(newer),
            Err(lost) => lost,
        };
        let root = self.open_root()?;
        let encrypted = |raw: &[u8]| {
            matches!(BackingEntry::classify(raw), BackingEntry::Short | BackingEntry::Long { .. })
        };
        let names = Names::read(&root.fd, encrypted).doing("read")?;
        let shown = names.iter().any(|raw| self.plain_name(&root, raw).is_ok());
        let blank = || {
            let record = sys::stat(&root.fd, dir::RECORD_NAME.as_bytes());
            names.get(0).is_none() && record.err() == Some(Errno::NOENT)
        };
        if shown || (named && blank()) { Ok(()) } else { Err(lost) }
    }

    /// Whether the root has its record, as every directory does.
    pub(crate) fn check_root_record(&self) -> Result<(), Fault> {
        if self.directory_id(&self.root)? == self.keys.current.root_directory() {
            return Ok(());
        }
        Err(Fault::damaged("opened", "its record coffer.dir is another directory's"))
    }

    /// Puts a directory's record in place.
    pub(crate) fn write_record(&self, place: &Place<DirId>) -> Result<(), Fault> {
        let record = self.keys.current.seal_directory(place.dir);
        self.put_file(&place.fd, dir::RECORD_NAME.as_bytes(), &record)
    }

    /// Seals a directory's record again where it lies. It lies in one sector: whatever ends this, the old or the new one is there.
    pub(crate) fn renew_record(&self, place: &Place<DirId>) -> Result<(), Fault> {
        match sys::open_to_write(&place.fd, dir::RECORD_NAME.as_bytes()) {
            Err(Errno::NOENT) => self.write_record(place),
            file => {
                let record = self.keys.current.seal_directory(place.dir);
                sys::write_at(file.doing("opened")?, &record, 0).doing("written")
            }
        }
    }

    /// The entry with this plain name: its raw one and its `stat`. While the tree is between two keys it lies under one of
    /// two names.
    pub(crate) fn find(&self, dir: &Place<DirId>, name: &[u8]) -> Result<(Vec<u8>, Stat), Fault> {
        for keys in self.keys.each() {
            let id = self.keys.id_under(keys, dir.dir);
            let raw = keys.seal_name(id, name).doing("found")?.name.into_bytes();
            match sys::stat(&dir.fd, &raw) {
                Err(Errno::NOENT) => {}
                other => return other.doing("found").map(|stat| (raw, stat)),
            }
        }
        Err(Fault::NotFound)
    }

    /// If the entry with this plain name lies under the previous key's name, gives it the current one's, in one step.
    pub(crate) fn settle_name(&self, dir: &Place<DirId>, name: &[u8]) -> Result<(), Fault> {
        let Some(previous) = &self.keys.previous else { return Ok(()) };
        let id = self.keys.id_under(previous, dir.dir);
        let old = previous.seal_name(id, name).doing("encrypted (its name)")?;
        match sys::stat(&dir.fd, old.name.as_bytes()) {
            Err(Errno::NOENT) => return Ok(()),
            other => other.doing("read")?,
        };
        let new = self.readable_name(dir, name)?;
        match sys::stat(&dir.fd, &new) {
            Err(Errno::NOENT) => {}
            Ok(_) => return Err(Fault::Conflict("it is there twice, under both keys")),
            Err(errno) => return Err(errno).doing("read"),
        }
        sys::rename(&dir.fd, old.name.as_bytes(), &dir.fd, &new).doing("given its name")?;
        match old.side.map(|side| sys::unlink(&dir.fd, side.name.as_bytes())) {
            None | Some(Ok(()) | Err(Errno::NOENT)) => Ok(()),
            Some(Err(errno)) => Err(errno).doing("tidied up"),
        }
    }

    /// The current raw form of a name; the side file that it may need is there.
    fn readable_name(&self, dir: &Place<DirId>, name: &[u8]) -> Result<Vec<u8>, Fault> {
        let sealed = self.keys.current.seal_name(dir.dir, name).doing("encrypted (its name)")?;
        if let Some(side) = sealed.side
            && Self::small_file(&dir.fd, side.name.as_bytes())?.as_ref() != Some(&side.content)
        {
            self.put_file(&dir.fd, side.name.as_bytes(), &side.content)?;
        }
        Ok(sealed.name.into_bytes())
    }

    /// The text of a link with this target; the record that it may need is there.
    pub(crate) fn seal_target(&self, target: &[u8]) -> Result<Vec<u8>, Fault> {
        let sealed = self.keys.current.seal_target(target).doing("encrypted")?;
        if let Some(record) = sealed.record {
            self.put_file(&self.links, sealed.text.as_bytes(), &record)?;
        }
        Ok(sealed.text.into_bytes())
    }

    /// The target of a link with this text.
    pub(crate) fn open_target(&self, text: &[u8]) -> Result<Vec<u8>, Fault> {
        let record = match symlink::target_record(text) {
            Some(name) => Self::small_file(&self.links, name.as_bytes())?,
            None => None,
        };
        self.keys.open_target(text, record.as_deref()).doing("read")
    }

    /// Reads the id of an open directory.
    fn with_id(&self, fd: OwnedFd) -> Result<Place<DirId>, Fault> {
        let dir = self.directory_id(&fd)?;
        Ok(Place { fd, dir })
    }

    /// Between two keys the record is written over where it lies, and who reads it in that moment may get a part of each: it is
    /// read again before it counts as damaged.
    fn directory_id(&self, fd: &OwnedFd) -> Result<DirId, Fault> {
        match self.read_directory_id(fd) {
            Err(Fault::Damaged { .. }) if self.keys.previous.is_some() => {
                self.read_directory_id(fd)
            }
            read => read,
        }
    }

    fn read_directory_id(&self, fd: &OwnedFd) -> Result<DirId, Fault> {
        // One byte more than a record has, to see one that was extended.
        let mut record = [0; dir::RECORD_LEN + 1];
        let file = Self::own_file(fd, dir::RECORD_NAME.as_bytes())?
            .ok_or_else(|| Fault::damaged("opened", "its record coffer.dir is missing"))?;
        let len = sys::read_at(file, &mut record, 0).doing("read")?;
        self.keys.open_directory(&record[..len]).doing("opened")
    }

    /// Puts a small file in place as a whole. Between two keys its content is durable before: what it is to stand in for, and what is
    /// removed then, is so already.
    fn put_file(&self, dir: &OwnedFd, name: &[u8], content: &[u8]) -> Result<(), Fault> {
        let (tmp, staged) = (self.stage.tmp(), self.stage.fresh());
        let put = || {
            let file = sys::create(tmp, &staged, 0o600)?;
            sys::write_at(&file, content, 0)?;
            if self.keys.previous.is_some() {
                sys::sync_file(&file)?;
            }
            sys::rename(tmp, &staged, dir, name)
        };
        put().doing("written").inspect_err(|_| {
            let _ = sys::unlink(tmp, &staged);
        })
    }

    /// All of a small file; `None` when there is none.
    pub(crate) fn small_file(dir: &OwnedFd, name: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        const MAX: u64 = 64 * 1024;
        /// Most are smaller. Room for the largest would cost more than all the rest: it is fetched, cleared, and wiped.
        const USUAL: usize = 4096;
        let Some(file) = Self::own_file(dir, name)? else { return Ok(None) };
        let mut content = Vec::with_capacity(USUAL);
        sys::read_all(file, MAX, &mut content).doing("read")?;
        Ok(Some(content))
    }

    /// Opens one of Coffer's own files; `None` when there is none. A device that somebody put in its place is not even
    /// opened, which for some has effects.
    fn own_file(dir: &OwnedFd, name: &[u8]) -> Result<Option<OwnedFd>, Fault> {
        match sys::stat(dir, name) {
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno).doing("opened"),
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {
                sys::open_file(dir, name).map(Some).doing("opened")
            }
            Ok(_) => {
                let name = shown(name);
                Err(Fault::damaged("opened", format!("{name} is no regular file")))
            }
        }
    }

    fn xattr_owner(of: &Owner<'_, Self>) -> Option<XattrOwner> {
        match of {
            Owner::Directory(place) => Some(XattrOwner::Directory(place.dir)),
            Owner::File(file) => Some(XattrOwner::File(file.cipher.id())),
            // The kernel allows no `user.*` attributes on links and nodes.
            Owner::Named(..) => None,
        }
    }
}

/// Makes an empty directory with this id among the things in the making.
pub(crate) fn stage_directory(
    keys: &TreeKeys,
    stage: &Stage,
    id: DirId,
) -> Result<(Vec<u8>, Place<DirId>), Fault> {
    let (tmp, staged) = (stage.tmp(), stage.fresh());
    sys::make_dir(tmp, &staged).doing("written")?;
    let fd = sys::open_dir(tmp, &staged).doing("written")?;
    let record = sys::create(&fd, dir::RECORD_NAME.as_bytes(), 0o600).doing("written")?;
    sys::write_at(&record, &keys.current.seal_directory(id), 0).doing("written")?;
    Ok((staged, Place { fd, dir: id }))
}

impl Source for SealedTree {
    const SEALED: bool = true;
    const ROOT: &[u8] = crate::filesystem::ROOT;

    /// The key. Between two keys names change from one moment to the next.
    fn order(&self) -> Option<String> {
        let key = self.keys.current.key_id();
        let now = self.keys.previous.as_ref().map(|_| kms_core::KeyId::random().to_string());
        Some(format!("{key} {}", now.unwrap_or_default()))
    }

    fn root(&self) -> Result<Place<DirId>, Fault> {
        self.open_root()
    }

    fn kind(&self, stat: &Stat) -> Result<Kind, Fault> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Ok(Kind::Directory),
            FileType::Symlink => Ok(Kind::Symlink),
            FileType::RegularFile if Node::is_record(stat.st_size.cast_unsigned()) => {
                Ok(Kind::Node)
            }
            FileType::RegularFile => Ok(Kind::File),
            // A node of the tree is a record; this one has nothing that shows whose it is.
            _ => Err(Fault::damaged(
                "read",
                "it is a FIFO, a socket or a device, and Coffer puts none there",
            )),
        }
    }

    fn is_entry(&self, _: &Place<DirId>, raw: &[u8]) -> bool {
        // What is not ours is one too, to be named.
        !matches!(
            BackingEntry::classify(raw),
            BackingEntry::Side { .. } | BackingEntry::DirectoryRecord
        )
    }

    fn is_foreign(&self, raw: &[u8]) -> bool {
        BackingEntry::classify(raw) == BackingEntry::Foreign
    }

    fn plain_name(&self, dir: &Place<DirId>, raw: &[u8]) -> Result<Vec<u8>, Fault> {
        let side = match BackingEntry::classify(raw) {
            BackingEntry::Long { side } => Self::small_file(&dir.fd, side.as_bytes())?,
            BackingEntry::Foreign => return Err(Fault::Foreign),
            _ => None,
        };
        self.keys.open_name(dir.dir, raw, side.as_deref()).doing("read (its name)")
    }

    fn enter(&self, dir: &Place<DirId>, raw: &[u8]) -> Result<Place<DirId>, Fault> {
        self.with_id(sys::open_dir(&dir.fd, raw).doing("opened")?)
    }

    fn open(&self, dir: &Place<DirId>, raw: &[u8], stat: &Stat) -> Result<SealedFile, Fault> {
        let fd = sys::open_file(&dir.fd, raw).doing("opened")?;
        SealedFile::open(&self.keys, fd, u64::try_from(stat.st_size).unwrap_or(0))
    }

    fn estimate(&self, stat: &Stat) -> u64 {
        // A file that was cut has no size; opening it will say so.
        u64::try_from(stat.st_size).map_or(0, |len| layout::logical_size(len).unwrap_or(0))
    }

    fn len(&self, file: &SealedFile) -> u64 {
        file.len()
    }

    fn read(
        &self,
        file: &SealedFile,
        index: u64,
        buffers: &mut Buffers,
    ) -> Result<Vec<Range<usize>>, Fault> {
        file.read_sound_segment(index, buffers)
    }

    fn confirm(&self, _: &SealedFile) -> Result<(), Fault> {
        // Everything was authenticated, and nobody else has the filesystem open.
        Ok(())
    }

    fn target(&self, dir: &Place<DirId>, raw: &[u8]) -> Result<Vec<u8>, Fault> {
        self.open_target(&sys::read_link(&dir.fd, raw).doing("read")?)
    }

    fn node(&self, dir: &Place<DirId>, raw: &[u8], _: &Stat) -> Result<Node, Fault> {
        let record = Self::small_file(&dir.fd, raw)?.unwrap_or_default();
        self.keys.open_node(&record).doing("read")
    }

    fn plain_xattr(&self, of: &Owner<'_, Self>, raw: Xattr) -> Result<Option<Xattr>, Fault> {
        if !raw.0.starts_with(b"user.") {
            return Ok(Some(raw));
        }
        match Self::xattr_owner(of) {
            Some(owner) if raw.0.starts_with(BACKING_PREFIX.as_bytes()) => {
                self.keys.open_xattr(owner, &raw).map(Some).doing("read")
            }
            _ => Err(Fault::Foreign),
        }
    }
}

impl Sink for SealedTree {
    fn root(&self) -> Result<Place<DirId>, Fault> {
        sys::give_owner_s_rights(&self.root).doing("written")?;
        self.open_root()
    }

    fn make_dir(&self, parent: &Place<DirId>, name: &[u8]) -> Result<Place<DirId>, Fault> {
        let raw = self.raw_name(parent, name)?;
        match sys::open_to_change(&parent.fd, &raw) {
            Ok(fd) => self.with_id(fd),
            Err(Errno::NOENT) => {
                let (staged, place) =
                    stage_directory(&self.keys, &self.stage, DirId::random().doing("written")?)?;
                sys::rename(self.stage.tmp(), &staged, &parent.fd, &raw).doing("written")?;
                Ok(place)
            }
            Err(Errno::NOTDIR | Errno::LOOP) => {
                Err(Fault::Conflict("something that is no directory has its name"))
            }
            Err(errno) => Err(errno).doing("opened"),
        }
    }

    fn raw_name(&self, dir: &Place<DirId>, name: &[u8]) -> Result<Vec<u8>, Fault> {
        // What has the name under the previous key is replaced, not joined.
        self.settle_name(dir, name)?;
        self.readable_name(dir, name)
    }

    fn begin(&self, fd: OwnedFd, len: u64) -> Result<SealedFile, Fault> {
        SealedFile::begin(&self.keys, fd, len)
    }

    fn resume(
        &self,
        fd: OwnedFd,
        len: u64,
        first: u64,
        unfinished: &Unfinished,
    ) -> Result<SealedFile, Fault> {
        SealedFile::resume(&self.keys, fd, len, first, unfinished)
    }

    fn unfinished(&self, file: &SealedFile) -> Unfinished {
        file.unfinished()
    }

    fn write(
        &self,
        file: &SealedFile,
        index: u64,
        data: &[Range<usize>],
        buffers: &mut Buffers,
    ) -> Result<(), Fault> {
        file.write_segment(index, data, buffers)
    }

    fn end(&self, file: &SealedFile) -> Result<(), Fault> {
        file.end()
    }

    fn raw_target(&self, _: &Place<DirId>, target: &[u8]) -> Result<Vec<u8>, Fault> {
        self.seal_target(target)
    }

    fn make_node(&self, dir: &OwnedFd, name: &[u8], node: Node) -> Result<(), Fault> {
        let file = sys::create(dir, name, 0o600).doing("written")?;
        sys::write_at(file, &self.keys.current.seal_node(node), 0).doing("written")
    }

    /// The record of a long link, unless the link has other names too.
    fn kept_elsewhere(&self, dir: &Place<DirId>, raw: &[u8]) -> Option<String> {
        let text = sys::read_link(&dir.fd, raw).ok()?;
        let record = symlink::target_record(&text)?.to_owned();
        let stat = sys::stat(&dir.fd, raw).ok()?;
        (stat.st_nlink == 1).then_some(record)
    }

    fn forget(&self, record: &str) {
        let _ = sys::unlink(&self.links, record.as_bytes());
    }

    fn raw_xattr(&self, of: &Owner<'_, Self>, plain: Xattr) -> Result<Xattr, Fault> {
        let (name, value) = plain;
        if !name.starts_with(b"user.") {
            return Ok((name, value));
        }
        let owner = Self::xattr_owner(of).ok_or(Fault::Conflict("such things have none"))?;
        let sealed = self.keys.current.seal_xattr(owner, &name, &value).doing("encrypted")?;
        Ok((self.keys.current.xattr_name(owner, &name).into_bytes(), sealed))
    }

    fn gives_xattr(&self, raw: &[u8]) -> bool {
        raw.starts_with(BACKING_PREFIX.as_bytes()) || sys::is_acl(raw)
    }
}

//! Verification: opens everything that the tree has, names all that is damaged, and goes on.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use data_path::dir::RECORD_NAME;
use data_path::{BackingEntry, DirId};
use kms_core::KeyId;

use crate::error::{Doing, Error, Fault, shown};
use crate::filesystem::{HEADER, LINKS, LOST, PREVIOUS, ROOT};
use crate::finding::{Audited, Finding, Grade};
use crate::header;
use crate::names::{NameWalk, Names};
use crate::needed::Needed;
use crate::repair::{self, Repair};
use crate::report::{Control, Problem, ProblemKind, Report, Tally, lock};
use crate::sealed::SealedTree;
use crate::sealed_file::SealedFile;
use crate::side::{Buffers, Kind, Owner, Place, Source, segments};
use crate::stage::make_or_open;
use crate::sys::{self, FileType, Stat};
use crate::trail::Trail;
use crate::work::{Ended, Queue, watch, workers};

const BATCH: usize = 32;

/// Verifies the tree, and with `repair` sets aside what can't be read.
pub(crate) fn verify(
    tree: &SealedTree,
    backing: &OwnedFd,
    repair: bool,
    control: &dyn Control,
) -> Result<Report, Error> {
    let lost = make_or_open(backing, LOST).doing("opened").map_err(|fault| fault.at(LOST))?;
    let verify = Verify {
        tree,
        control,
        repair: repair.then(|| Repair::new(lost)),
        tally: Tally::default(),
        queue: Queue::default(),
        audited: Audited::default(),
        needed: Needed::default(),
        stopped: AtomicBool::default(),
    };
    let ended = Ended::default();
    let walked = std::thread::scope(|scope| {
        for _ in 0..workers() {
            scope.spawn(|| verify.work());
        }
        scope.spawn(|| watch(tree, &verify.tally, control, &ended));
        let walked = verify.walk();
        verify.queue.drain();
        let walked = walked.map(|all| all && !verify.stopped.load(Ordering::Relaxed));
        verify.queue.close();
        ended.set();
        walked
    });
    control.progress(&verify.tally.progress());
    let complete = walked.map_err(|fault| fault.at(ROOT))?;
    if complete {
        verify.check_links(backing)?;
        verify.check_headers(backing);
    }
    if repair {
        sys::sync_all(backing).doing("made durable").map_err(|fault| fault.at(LOST))?;
    }
    control.progress(&verify.tally.progress());
    Ok(verify.tally.report(!complete, None))
}

struct Verify<'a> {
    tree: &'a SealedTree,
    control: &'a dyn Control,
    repair: Option<Repair>,
    tally: Tally,
    queue: Queue<Job>,
    audited: Audited,
    needed: Needed,
    /// A large file was left in its middle.
    stopped: AtomicBool,
}

struct Dir {
    place: Place<DirId>,
    trail: Arc<Trail>,
}

/// A directory on the way down to where the walk is.
struct Level {
    dir: Arc<Dir>,
    names: NameWalk,
    /// The long name that was met last: its side file follows it.
    long: Vec<u8>,
    /// Side files without a long name.
    orphans: Vec<Vec<u8>>,
    /// Whether a name can't be read, which may be that of one of the orphans.
    unsure: bool,
    batch: Vec<Item>,
}

enum Job {
    Batch(Arc<Dir>, Vec<Item>),
    /// One worker's share of a large file.
    Share(Arc<Large>),
}

struct Item {
    raw: Vec<u8>,
    name: Vec<u8>,
    stat: Stat,
}

struct Large {
    dir: Arc<Dir>,
    item: Item,
    file: SealedFile,
    next_segment: AtomicU64,
    sharers: AtomicUsize,
    finding: Mutex<Finding>,
}

impl Verify<'_> {
    /// Walks the tree and hands its files out; `false` when it was asked to stop.
    fn walk(&self) -> Result<bool, Fault> {
        let root = self.tree.open_root()?;
        let trail = Trail::root(ROOT);
        self.check_root_record(&root, &trail);
        let mut stack = vec![self.level(root, trail)?];
        while let Some(top) = stack.last_mut() {
            if self.control.stop_requested() {
                return Ok(false);
            }
            if let Some(raw) = top.names.get().map(<[u8]>::to_vec) {
                let below = self.step(top, raw);
                stack.extend(below);
            } else {
                self.leave(top);
                stack.pop();
            }
        }
        Ok(true)
    }

    fn level(&self, place: Place<DirId>, trail: Arc<Trail>) -> Result<Level, Fault> {
        let names = NameWalk::start(&place.fd, |_| true).doing("read")?;
        self.check_xattrs(&trail, &Owner::Directory(&place));
        let dir = Arc::new(Dir { place, trail });
        let (long, orphans, batch) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Level { dir, names, long, orphans, unsure: false, batch })
    }

    /// Deals with an entry; answers the level below if it is a directory.
    fn step(&self, top: &mut Level, raw: Vec<u8>) -> Option<Level> {
        if let Err(fault) = top.names.advance(&top.dir.place.fd, |_| true).doing("read") {
            let trail = &top.dir.trail;
            top.unsure = true;
            self.needed.be_unsure();
            let problem = fault.problem(&trail.plain(), Some(&trail.raw()));
            self.tally.problem(problem, self.control);
        }
        let (name, stat) = self.identify(top, &raw)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                self.flush(top);
                return self.enter(&top.dir, &raw, &name);
            }
            FileType::RegularFile if segments(self.tree.estimate(&stat)) > 1 => {
                self.flush(top);
                self.share(&top.dir, Item { raw, name, stat });
            }
            _ => {
                top.batch.push(Item { raw, name, stat });
                if top.batch.len() == BATCH {
                    self.flush(top);
                }
            }
        }
        None
    }

    fn enter(&self, dir: &Dir, raw: &[u8], name: &[u8]) -> Option<Level> {
        let entered = self
            .tree
            .enter(&dir.place, raw)
            .and_then(|place| self.level(place, Arc::new(dir.trail.entry(raw, name))));
        entered.map_err(|fault| self.hidden(dir, raw, name, &fault)).ok()
    }

    fn flush(&self, level: &mut Level) {
        if !level.batch.is_empty() {
            let batch = std::mem::take(&mut level.batch);
            self.queue.put(Job::Batch(Arc::clone(&level.dir), batch));
        }
    }

    fn leave(&self, level: &mut Level) {
        self.flush(level);
        let orphans = std::mem::take(&mut level.orphans);
        if level.unsure && !orphans.is_empty() {
            let what = format!("one of {} side file(s) of long names", orphans.len());
            self.not_looked_for(&level.dir.trail, &what);
        } else {
            let reason = "it is the side file of a long name that is not there";
            orphans.iter().for_each(|raw| self.leftover(&level.dir, raw, reason));
        }
        self.tally.files_done.fetch_add(1, Ordering::Relaxed);
    }

    fn check_root_record(&self, root: &Place<DirId>, trail: &Arc<Trail>) {
        let Err(fault) = self.tree.check_root_record() else { return };
        let name = RECORD_NAME.as_bytes();
        let at = trail.entry(name, b"");
        let problem = fault.problem(b"", Some(&at.raw()));
        let mut reason = format!("{fault}; the names in the root can be read without it");
        if self.repair.is_some() && problem.kind == ProblemKind::Damaged {
            if sys::stat(&root.fd, name).is_ok() {
                reason += &self.set_aside(&root.fd, name, &at, &reason);
            }
            reason += &repair::write_root_record(self.tree);
        }
        self.blemish(&at, problem.kind, reason);
    }

    /// The plain name and the stat of an entry; `None` when it is none, or can't be told (which is
    /// reported).
    fn identify(&self, top: &mut Level, raw: &[u8]) -> Option<(Vec<u8>, Stat)> {
        let dir = &*top.dir;
        match BackingEntry::classify(raw) {
            BackingEntry::DirectoryRecord => return None,
            BackingEntry::Side { of } => {
                if of.as_bytes() != top.long {
                    top.orphans.push(raw.to_vec());
                }
                return None;
            }
            BackingEntry::Foreign => {
                self.foreign(dir, raw);
                return None;
            }
            BackingEntry::Long { .. } => top.long = raw.to_vec(),
            BackingEntry::Short => {}
        }
        let found = self
            .tree
            .plain_name(&dir.place, raw)
            .and_then(|name| Ok((name, sys::stat(&dir.place.fd, raw).doing("read")?)));
        found
            .map_err(|fault| {
                top.unsure = true;
                self.hidden(dir, raw, b"(a name that can't be read)", &fault);
                self.tally.files_done.fetch_add(1, Ordering::Relaxed);
            })
            .ok()
    }

    fn foreign(&self, dir: &Dir, raw: &[u8]) {
        let stat = sys::stat(&dir.place.fd, raw);
        // Anything else may be, or have in it, a link that somebody gave another name.
        if !stat.is_ok_and(|it| FileType::from_raw_mode(it.st_mode) == FileType::RegularFile) {
            self.needed.be_unsure();
        }
        self.leftover(dir, raw, &Fault::Foreign.to_string());
    }

    fn work(&self) {
        let mut buffers = Buffers::default();
        while let Some(job) = self.queue.take() {
            match job {
                Job::Batch(dir, items) => {
                    for item in &items {
                        self.entry(&dir, item, &mut buffers);
                        self.tally.files_done.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Job::Share(large) => self.work_on(&large, &mut buffers),
            }
            self.queue.done();
        }
    }

    fn entry(&self, dir: &Dir, item: &Item, buffers: &mut Buffers) {
        match self.tree.kind(&item.stat) {
            Ok(Kind::File) => self.file(dir, item, buffers),
            Ok(Kind::Symlink) => self.link(dir, item),
            Ok(_) => {
                if let Err(fault) = self.tree.node(&dir.place, &item.raw, &item.stat) {
                    return self.unreadable(dir, &item.raw, &item.name, &fault);
                }
                let owner = Owner::Named(dir.place.fd.as_fd(), &item.raw);
                self.check_xattrs(&dir.trail.entry(&item.raw, &item.name), &owner);
            }
            Err(fault) => self.hidden(dir, &item.raw, &item.name, &fault),
        }
    }

    fn link(&self, dir: &Dir, item: &Item) {
        let text = sys::read_link(&dir.place.fd, &item.raw).doing("read");
        let opened = text.and_then(|text| {
            self.needed.add(&text);
            self.tree.open_target(&text)
        });
        if let Err(fault) = opened {
            self.hidden(dir, &item.raw, &item.name, &fault);
        }
    }

    fn file(&self, dir: &Dir, item: &Item, buffers: &mut Buffers) {
        if let Some(finding) = self.audited.find(&item.stat) {
            return self.conclude(dir, item, &finding);
        }
        let mut finding = Finding::default();
        match self.tree.open(&dir.place, &item.raw, &item.stat) {
            Ok(file) => {
                for index in 0..file.segments() {
                    self.audit(&file, index, buffers, &mut finding);
                }
                self.check_whole(dir, item, &file, &mut finding);
            }
            Err(fault) => finding.add(fault.to_string(), Grade::of(&fault)),
        }
        self.audited.keep(&item.stat, &finding);
        self.conclude(dir, item, &finding);
    }

    fn audit(&self, file: &SealedFile, index: u64, buffers: &mut Buffers, finding: &mut Finding) {
        let mut damaged = |error: data_path::FormatError| {
            finding.add(error.to_string(), Grade::Damaged);
            file.lost_bytes(&error).into_iter().for_each(|range| finding.add_lost(range));
        };
        match file.read_segment(index, buffers, &mut damaged) {
            Ok(_) => {
                self.tally.bytes_done.fetch_add(buffers.plain.len() as u64, Ordering::Relaxed);
            }
            Err(fault) => finding.add(fault.to_string(), Grade::of(&fault)),
        }
    }

    /// What is not in the segments.
    fn check_whole(&self, dir: &Dir, item: &Item, file: &SealedFile, finding: &mut Finding) {
        if let Some(error) = file.cipher.header_damage() {
            let mut reason = error.to_string();
            // What can't be read stays as it is.
            if self.repair.is_some() && finding.grade == Grade::Blemished {
                let (dir, stat) = (&dir.place.fd, &item.stat);
                reason += &repair::mend_header(self.tree, dir, &item.raw, stat, file);
            }
            finding.add(reason, Grade::Blemished);
        }
        self.check_xattrs(&dir.trail.entry(&item.raw, &item.name), &Owner::File(file));
    }

    fn conclude(&self, dir: &Dir, item: &Item, finding: &Finding) {
        let Some(reason) = finding.told() else { return };
        let at = dir.trail.entry(&item.raw, &item.name);
        match finding.grade {
            Grade::Blemished => self.blemish(&at, ProblemKind::Damaged, reason),
            Grade::Damaged => {
                self.unreadable(dir, &item.raw, &item.name, &Fault::damaged("read", reason));
            }
            Grade::Unanswered => self.report(&at, ProblemKind::Io, reason),
        }
    }

    /// Gives each worker a share of a large file.
    fn share(&self, dir: &Arc<Dir>, item: Item) {
        if let Some(finding) = self.audited.find(&item.stat) {
            self.conclude(dir, &item, &finding);
            self.tally.files_done.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let dir = Arc::clone(dir);
        match self.tree.open(&dir.place, &item.raw, &item.stat) {
            Ok(file) => {
                let (next_segment, sharers) = (AtomicU64::new(0), AtomicUsize::new(workers()));
                let finding = Mutex::default();
                let large = Large { dir, item, file, next_segment, sharers, finding };
                let large = Arc::new(large);
                for _ in 0..workers() {
                    self.queue.put(Job::Share(Arc::clone(&large)));
                }
            }
            Err(fault) => {
                self.unreadable(&dir, &item.raw, &item.name, &fault);
                self.tally.files_done.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn work_on(&self, large: &Large, buffers: &mut Buffers) {
        loop {
            let index = large.next_segment.fetch_add(1, Ordering::Relaxed);
            if index >= large.file.segments() {
                break;
            }
            if self.control.stop_requested() {
                self.stopped.store(true, Ordering::Relaxed);
                break;
            }
            let mut finding = Finding::default();
            self.audit(&large.file, index, buffers, &mut finding);
            lock(&large.finding).merge(finding);
        }
        if large.sharers.fetch_sub(1, Ordering::AcqRel) == 1 {
            let mut finding = lock(&large.finding).clone();
            self.check_whole(&large.dir, &large.item, &large.file, &mut finding);
            self.audited.keep(&large.item.stat, &finding);
            self.conclude(&large.dir, &large.item, &finding);
            self.tally.files_done.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Opens every attribute. A damaged one spoils no content.
    fn check_xattrs(&self, at: &Trail, of: &Owner<'_, SealedTree>) {
        let found = match sys::xattrs(of.inode()) {
            Ok(found) => found,
            Err(errno) => {
                let reason =
                    format!("its attributes can't be read: {}", std::io::Error::from(errno));
                self.report(at, ProblemKind::Io, reason);
                return;
            }
        };
        for xattr in found {
            let Err(fault) = self.tree.plain_xattr(of, xattr.clone()) else { continue };
            let mut reason = format!("its attribute {} can't be read: {fault}", shown(&xattr.0));
            let kind = fault.kind_of_attribute();
            if let Some(repair) = &self.repair
                && kind != ProblemKind::Attribute
            {
                reason += &repair.set_xattr_aside(of.inode(), &xattr, &at.raw(), &reason);
            }
            self.report(at, kind, reason);
        }
    }

    /// Records of link targets that no link needs, and what is not of Coffer's making beside them.
    fn check_links(&self, backing: &OwnedFd) -> Result<(), Error> {
        let read = || {
            let links = sys::open_dir(&self.tree.links, b".").doing("read")?;
            Names::read(&links, |name| !self.needed.has(name)).doing("read")
        };
        let names = read().map_err(|fault: Fault| fault.at(LINKS))?;
        if names.get(0).is_none() {
            return Ok(());
        }
        // What is set aside, or is to be linked to by a stopped job, is to be of use with its target.
        self.needed.add_links_below(backing, LOST);
        self.needed.add_links_below(self.tree.stage.tmp(), b".");
        let left = || names.iter().filter(|name| !self.needed.has(name));
        let trail = Trail::root(LINKS);
        if self.needed.is_unsure() && left().next().is_some() {
            let what = format!("one of {} record(s) of link targets", left().count());
            self.not_looked_for(&trail, &what);
            return Ok(());
        }
        for name in left() {
            let at = trail.entry(name, b"");
            let reason = "it has the target of a link that is not there".to_owned();
            let aside = self.set_aside(&self.tree.links, name, &at, &reason);
            self.report(&at, ProblemKind::Leftover, reason + &aside);
        }
        Ok(())
    }

    fn check_headers(&self, backing: &OwnedFd) {
        self.check_header(backing, HEADER, self.tree.keys.current.key_id());
        // One that is not there went when the re-encryption came to its end, beside this or before.
        let previous = self.tree.keys.previous.as_ref();
        if let Some(keys) =
            previous.filter(|_| sys::stat(backing, PREVIOUS).err() != Some(sys::Errno::NOENT))
        {
            self.check_header(backing, PREVIOUS, keys.key_id());
        }
    }

    fn check_header(&self, backing: &OwnedFd, name: &[u8], key: KeyId) {
        let wrong = match header::read(backing, name) {
            Ok(envelope) if envelope.wrapped.key_id == key => return,
            Ok(envelope) => format!("it has another key, {}", envelope.wrapped.key_id),
            Err(fault @ Fault::System { .. }) => {
                let reason = format!("the copy of the wrapped key can't be read: {fault}");
                return self.report(&Trail::root(name), ProblemKind::Io, reason);
            }
            Err(fault) => fault.to_string(),
        };
        let reason =
            format!("the copy of the wrapped key can't be used: {wrong}; a rewrap renews it");
        self.blemish(&Trail::root(name), ProblemKind::Damaged, reason);
    }

    fn unreadable(&self, dir: &Dir, raw: &[u8], name: &[u8], fault: &Fault) {
        let at = dir.trail.entry(raw, name);
        let mut problem = fault.problem(&at.plain(), Some(&at.raw()));
        problem.reason = fault.to_string();
        // A disk that does not answer now may answer later; what it holds stays where it is.
        if problem.kind == ProblemKind::Damaged {
            problem.reason += &self.set_aside(&dir.place.fd, raw, &at, &problem.reason);
        }
        self.tally.problem(problem, self.control);
    }

    /// As [`Self::unreadable`], of what may be, or have in it, names and links that need something else.
    fn hidden(&self, dir: &Dir, raw: &[u8], name: &[u8], fault: &Fault) {
        self.needed.be_unsure();
        self.unreadable(dir, raw, name, fault);
    }

    fn not_looked_for(&self, at: &Trail, what: &str) {
        let reason = format!(
            "leftovers were not looked for here: what can't be read may need {what} that nothing else needs"
        );
        self.report(at, ProblemKind::Skipped, reason);
    }

    fn leftover(&self, dir: &Dir, raw: &[u8], reason: &str) {
        let at = dir.trail.entry(raw, b"");
        let aside = self.set_aside(&dir.place.fd, raw, &at, reason);
        self.report(&at, ProblemKind::Leftover, format!("{reason}{aside}"));
    }

    fn report(&self, at: &Trail, kind: ProblemKind, reason: String) {
        let problem = Problem::new(&at.plain(), Some(&at.raw()), kind, reason);
        self.tally.problem(problem, self.control);
    }

    /// As [`Self::report`], of what costs nothing.
    fn blemish(&self, at: &Trail, kind: ProblemKind, reason: String) {
        let problem = Problem::new(&at.plain(), Some(&at.raw()), kind, reason);
        self.tally.blemish(problem, self.control);
    }

    /// With `repair`: moves an entry to `coffer.lost`, and says so.
    fn set_aside(&self, dir: &OwnedFd, raw: &[u8], at: &Trail, reason: &str) -> String {
        let repair = self.repair.as_ref();
        repair.map_or_else(String::new, |repair| repair.set_aside(dir, raw, &at.raw(), reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Filesystem, Unattended};
    use kms_core::FilesystemKey;

    /// The system says no here because the file is gone; with no descriptors left, or a disk that does not answer, it
    /// says no in the same way.
    #[test]
    fn what_the_system_does_not_open_is_no_damage() {
        let dir = tempfile::tempdir().unwrap();
        let (backing, source) = (dir.path().join("backing"), dir.path().join("source"));
        let key = Arc::new(FilesystemKey::generate().unwrap());
        let envelope = testkit::key_holder::envelope(key.id());
        let home = Filesystem::create(&backing, key, &envelope, crate::Backend::default()).unwrap();
        std::fs::create_dir(&source).unwrap();
        std::fs::write(source.join("file"), "content").unwrap();
        home.import(&source, None, &Unattended).unwrap();
        let root = home.tree.open_root().unwrap();
        let raw = home.tree.keys.current.seal_name(root.dir, b"file").unwrap().name.into_bytes();
        let item = || Item {
            stat: sys::stat(&root.fd, &raw).unwrap(),
            raw: raw.clone(),
            name: b"file".to_vec(),
        };
        let (there, gone) = (item(), item());
        let root = Dir { place: home.tree.open_root().unwrap(), trail: Trail::root(ROOT) };
        let lost = make_or_open(&sys::open_root(&backing).unwrap(), LOST).unwrap();
        let verify = Verify {
            tree: &home.tree,
            control: &Unattended,
            repair: Some(Repair::new(lost)),
            tally: Tally::default(),
            queue: Queue::default(),
            audited: Audited::default(),
            needed: Needed::default(),
            stopped: AtomicBool::default(),
        };
        verify.file(&root, &there, &mut Buffers::default());
        assert_eq!(verify.tally.problems(), []);
        sys::unlink(&root.place.fd, &raw).unwrap();
        verify.file(&root, &gone, &mut Buffers::default());
        let [problem] = &verify.tally.problems()[..] else { panic!("one problem") };
        assert_eq!(problem.kind, ProblemKind::Io, "{problem:?}");
        assert!(!problem.reason.contains("aside"), "{problem:?}");
    }

    #[test]
    fn damage_is_reported_whatever_comes_before_and_after() {
        let tally = Tally::default();
        for n in 0..3000 {
            let kind = if n == 2000 { ProblemKind::Damaged } else { ProblemKind::Io };
            tally.problem(Problem::new(b"file", None, kind, "why"), &Unattended);
        }
        let report = tally.report(false, None);
        assert_eq!((report.problems.len(), report.problems_omitted), (1000, 2000));
        assert!(report.problems.iter().any(|problem| problem.kind == ProblemKind::Damaged));
    }
}

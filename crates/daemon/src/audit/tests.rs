//! The chain, its files and its head.
#![allow(clippy::unwrap_used)]

use std::fs;

use kms_core::{Outcome, RequestId};
use testkit::audit::{AuditSinkFixture, audit_sink_contract};

use super::*;

const SMALL: Limits = Limits { file_bytes: 2500, kept: 2 };

fn event(n: u64) -> AuditEvent {
    AuditEvent {
        at: UnixMillis(n),
        action: if n.is_multiple_of(2) { "fs.create" } else { "key.unwrap" }.into(),
        subject: format!("fs{n}"),
        outcome: if n % 10 == 3 { Outcome::Failed } else { Outcome::Done },
        who: None,
        key: None,
        requests: RequestId::parse(&format!("request-{n}")).into_iter().collect(),
        detail: "\"quoted\"\n".into(),
    }
}

/// A log in a directory of its own.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("audit.jsonl")
    }

    fn open(&self) -> AuditLog {
        AuditLog::open_within(&self.path(), SMALL, Begun::Perhaps).unwrap()
    }

    fn write(&self, events: std::ops::Range<u64>) {
        let log = self.open();
        events.for_each(|n| log.record(&event(n)));
        assert_eq!(log.trouble(), None);
    }

    fn trouble(&self) -> Option<String> {
        self.open().trouble()
    }

    fn text(&self) -> String {
        fs::read_to_string(self.path()).unwrap()
    }
}

fn seqs(page: &reading::Page) -> Vec<u64> {
    page.lines.iter().map(|line| line.line.seq).collect()
}

struct Kept {
    log: Arc<AuditLog>,
    _place: Place,
}

impl AuditSinkFixture for Kept {
    fn sink(&self) -> Arc<dyn AuditSink> {
        Arc::clone(&self.log) as _
    }

    fn kept(&self) -> Vec<AuditEvent> {
        let all = Query { limit: usize::MAX, ..Query::default() };
        let page = self.log.page(&all).unwrap();
        page.lines.into_iter().map(|line| line.line.event).collect()
    }
}

#[test]
fn it_keeps_the_promises_of_a_sink() {
    let place = Place::new();
    let log = Arc::new(AuditLog::open(&place.path()).unwrap());
    audit_sink_contract(&Kept { log: Arc::clone(&log), _place: place });
    assert_eq!(log.trouble(), None);
}

#[test]
fn the_chain_goes_on_over_restarts() {
    let place = Place::new();
    place.write(0..2);
    place.write(2..3);
    let text = place.text();
    let lines: Vec<HashedLine> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.iter().map(|l| l.line.seq).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(lines[0].line.prev, "0".repeat(64));
    assert_eq!(lines[2].line.prev, lines[1].hash);
}

#[test]
fn files_are_bounded_and_the_chain_goes_through_all_that_are_kept() {
    let place = Place::new();
    for n in 0..10 {
        place.write(n * 5..n * 5 + 5);
    }
    let ended = fs::read_dir(place.dir.path().join("audit")).unwrap().map(Result::unwrap);
    let sizes: Vec<u64> = ended.map(|file| file.metadata().unwrap().len()).collect();
    assert!(sizes.len() == SMALL.kept && sizes.iter().all(|size| *size < 3000), "{sizes:?}");
    let log = place.open();
    let whole = log.verify().unwrap();
    assert_eq!((whole.end.seq, whole.files, whole.trouble), (50, SMALL.kept + 1, None));
    assert!(whole.first.is_some_and(|first| first > 1), "{:?}", whole.first);
    assert_eq!(log.trouble(), None);
    drop(log);

    // An ended file that was changed, and one that was taken out.
    let path = Files::of(&place.path()).ended().unwrap()[1].1.clone();
    let good = fs::read_to_string(&path).unwrap();
    fs::write(&path, good.replacen("fs.create", "fs.delete", 1)).unwrap();
    assert!(place.open().verify().unwrap().trouble.unwrap().contains("breaks at line"));
    fs::remove_file(&path).unwrap();
    assert!(place.open().verify().unwrap().trouble.unwrap().contains("breaks at line"));
}

#[test]
fn old_files_that_cannot_be_removed_cost_no_line() {
    let place = Place::new();
    let log = place.open();
    // Older than all that are written, and no file.
    fs::create_dir_all(place.dir.path().join("audit").join(format!("{:020}.jsonl", 0))).unwrap();
    (0..50).for_each(|n| log.record(&event(n)));
    assert!(log.trouble().unwrap().contains("old ones not removed"));
    drop(log);
    let files = Files::of(&place.path());
    let ended = files.ended().unwrap().into_iter().skip(1).map(|(_, path)| path);
    let texts = ended.chain([place.path()]).map(|path| fs::read_to_string(path).unwrap());
    assert_eq!(texts.collect::<String>().lines().count(), 50);
}

#[test]
fn lines_are_found_from_the_newest_on() {
    let place = Place::new();
    place.write(0..20);
    let log = place.open();
    let query = |query: Query| log.page(&Query { limit: 3, ..query }).unwrap();
    let newest = query(Query::default());
    assert_eq!((seqs(&newest), newest.before), (vec![18, 19, 20], Some(18)));
    let earlier = query(Query { before: newest.before, ..Query::default() });
    assert_eq!(seqs(&earlier), [15, 16, 17]);
    assert_eq!(
        seqs(&query(Query { action: Some("fs.".into()), ..Query::default() })),
        [15, 17, 19]
    );
    let failed = query(Query { failed: true, ..Query::default() });
    assert_eq!((seqs(&failed), failed.before), (vec![4, 14], None));
    assert_eq!(seqs(&query(Query { subject: Some("fs7".into()), ..Query::default() })), [8]);
}

#[test]
fn only_files_of_its_own_are_opened() {
    for name in ["audit.jsonl", "audit.head"] {
        let place = Place::new();
        let (path, elsewhere) = (place.dir.path().join(name), place.dir.path().join("elsewhere"));
        fs::write(&elsewhere, "no line of a log").unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        AuditLog::open(&place.path()).unwrap_err();
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "no line of a log");

        fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .unwrap();
        assert!(AuditLog::open(&place.path()).unwrap_err().to_string().contains("regular"));
    }
}

#[test]
fn every_change_breaks_it_where_it_was_made() {
    let place = Place::new();
    place.write(0..4);
    let good = place.text();
    let lines: Vec<&str> = good.lines().collect();
    let changed = good.replacen("fs1", "fs9", 1);
    let without = [lines[0], lines[2], lines[3], ""].join("\n");
    let swapped = [lines[0], lines[2], lines[1], lines[3], ""].join("\n");
    let noise = [lines[0], "{}", lines[1], lines[2], lines[3], ""].join("\n");
    let put_in = good.replacen("\"seq\":2", "\"by\":\"me\",\"seq\":2", 1);
    for bad in [changed, without, swapped, noise, put_in] {
        fs::write(place.path(), bad).unwrap();
        let trouble = place.trouble();
        assert!(trouble.as_ref().is_some_and(|t| t.contains("line 2:")), "{trouble:?}");
    }
}

#[test]
fn a_tail_that_was_cut_off_is_noticed_by_the_head() {
    let place = Place::new();
    place.write(0..5);
    let good = place.text();
    let cut = good.lines().take(3).map(|line| format!("{line}\n")).collect::<String>();
    let head = fs::read(place.dir.path().join("audit.head")).unwrap();
    let put_back = |text: &str, head: &[u8]| {
        fs::write(place.path(), text).unwrap();
        fs::write(place.dir.path().join("audit.head"), head).unwrap();
    };
    put_back(&cut, &head);
    assert!(place.trouble().unwrap().contains("lines 4 to 5"), "they are named");
    put_back("", &head);
    assert!(place.trouble().unwrap().contains("lines 1 to 5"));
    // Another history of the same length, or a longer one.
    let other = Place::new();
    other.open().record(&event(99));
    other.write(1..7);
    put_back(&other.text(), &head);
    assert!(place.trouble().unwrap().contains("made anew"));
    put_back(&good, b"");
    assert!(place.trouble().unwrap().contains("head of the audit log is gone"));
    put_back(&good, b"noise");
    assert!(place.trouble().unwrap().contains("can't be read"));
    put_back(&good, &head);
    assert_eq!(place.trouble(), None);
    // A head that is behind is what a kill -9 leaves.
    let log = place.open();
    log.record(&event(5));
    drop(log);
    let longer = place.text();
    put_back(&longer, &head);
    assert_eq!(place.trouble(), None);
}

#[test]
fn a_log_that_is_gone_with_its_head_is_missed_where_there_was_one() {
    let place = Place::new();
    let again = || AuditLog::open_within(&place.path(), SMALL, Begun::Surely).unwrap();
    assert_eq!(place.trouble(), None);
    assert_eq!(again().trouble(), None, "one without a line is one");
    let files = [place.path(), place.dir.path().join("audit.head")];
    files.iter().for_each(|file| fs::remove_file(file).unwrap());
    assert!(again().trouble().unwrap().contains("the audit log is gone"));
    // And so it stays, as long as the line is kept that tells it.
    assert!(again().verify().unwrap().trouble.unwrap().contains("the audit log is gone"));
}

#[test]
fn what_is_put_in_its_place_while_it_is_written_is_noticed() {
    let place = Place::new();
    let log = place.open();
    (0..3).for_each(|n| log.record(&event(n)));
    assert_eq!(log.verify().unwrap().trouble, None);
    let other = Place::new();
    other.write(7..10);
    fs::remove_file(place.path()).unwrap();
    fs::copy(other.path(), place.path()).unwrap();
    assert!(log.verify().unwrap().trouble.unwrap().contains("another file was put in"));
    assert!(log.try_record(&event(9)).unwrap_err().contains("another file was put in its place"));
    // Written over where it lies.
    let place = Place::new();
    let log = place.open();
    (0..3).for_each(|n| log.record(&event(n)));
    fs::write(place.path(), other.text()).unwrap();
    assert!(log.verify().unwrap().trouble.unwrap().contains("not the one that this node wrote"));
}

#[test]
fn a_file_that_was_removed_while_it_is_written_takes_no_lines_and_is_not_made_anew() {
    let place = Place::new();
    let log = place.open();
    (0..3).for_each(|n| log.record(&event(n)));
    let aside = place.dir.path().join("aside");
    fs::rename(place.path(), &aside).unwrap();
    log.page(&Query { limit: 9, ..Query::default() }).unwrap_err();
    assert!(log.trouble().unwrap().contains("No such file"));
    assert!(log.verify().unwrap().trouble.unwrap().contains("No such file"));
    assert!(log.try_record(&event(3)).unwrap_err().contains("No such file"));
    assert!(!place.path().exists());
    assert_eq!(fs::read_to_string(&aside).unwrap().lines().count(), 3);
    // The next start has it on record.
    drop(log);
    assert!(place.trouble().unwrap().contains("lines 1 to 3"));
}

#[test]
fn a_tail_that_is_cut_off_and_a_head_that_is_changed_are_noticed_while_it_is_written() {
    let place = Place::new();
    let log = place.open();
    let head = place.dir.path().join("audit.head");
    let old = fs::read(&head).unwrap();
    (0..5).for_each(|n| log.record(&event(n)));
    while !fs::read_to_string(&head).unwrap().starts_with(&format!("{:020} ", 5)) {
        thread::sleep(SYNC_WITHIN / 4);
    }
    assert_eq!(log.verify().unwrap().trouble, None);
    let (good, text) = (fs::read(&head).unwrap(), place.text());
    let told = || log.verify().unwrap().trouble.unwrap();
    fs::remove_file(&head).unwrap();
    assert!(told().contains("the head of the audit log is gone"));
    fs::write(&head, "noise").unwrap();
    assert!(told().contains("audit.head can't be read"));
    fs::write(&head, &old).unwrap();
    assert!(told().contains("line 0, and was made to tell of line 5: it was changed"));
    fs::write(&head, &good).unwrap();
    assert_eq!(log.verify().unwrap().trouble, None);

    let cut = text.lines().take(3).map(|line| format!("{line}\n")).collect::<String>();
    fs::write(place.path(), cut).unwrap();
    assert!(told().contains("lines 4 to 5 of the audit log are gone"));
    fs::write(&head, &old).unwrap();
    assert!(told().contains("lines 4 to 5 of the audit log are gone"));
}

#[test]
fn a_line_that_a_crash_cut_is_taken_out() {
    let place = Place::new();
    place.write(0..2);
    let head = fs::read(place.dir.path().join("audit.head")).unwrap();
    let log = place.open();
    log.record(&event(2));
    drop(log);
    let good = fs::read(place.path()).unwrap();
    fs::write(place.path(), &good[..good.len() - 7]).unwrap();
    fs::write(place.dir.path().join("audit.head"), head).unwrap();
    place.write(3..4);
    assert_eq!(place.trouble(), None);
    assert_eq!(place.text().lines().count(), 3);
}

#[test]
fn only_its_owner_reads_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = Place::new();
    place.write(0..20);
    let files = [place.path(), place.dir.path().join("audit.head")];
    for path in
        files.into_iter().chain(Files::of(&place.path()).ended().unwrap().pop().map(|f| f.1))
    {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn what_was_found_at_one_start_stays_on_record() {
    let place = Place::new();
    place.write(0..5);
    let head = place.dir.path().join("audit.head");
    let cut = place.text().lines().take(3).map(|line| format!("{line}\n")).collect::<String>();
    fs::write(place.path(), cut).unwrap();
    assert!(place.trouble().unwrap().contains("lines 4 to 5"));
    for _ in 0..2 {
        let log = place.open();
        for trouble in [log.trouble(), log.verify().unwrap().trouble] {
            let trouble = trouble.unwrap();
            assert!(trouble.contains("lines 4 to 5") && trouble.contains("in line 4"), "{trouble}");
        }
    }
    let last: HashedLine = serde_json::from_str(place.text().lines().last().unwrap()).unwrap();
    assert_eq!((last.line.seq, last.line.event.action.as_str()), (4, TROUBLE), "one line");
    // The file of that line is ended, and after it another thing is found.
    let log = place.open();
    (0..8).for_each(|n| log.record(&event(n)));
    drop(log);
    assert!(!place.text().contains(TROUBLE));
    fs::remove_file(&head).unwrap();
    assert!(place.trouble().unwrap().contains("in line 4"));
    assert!(place.text().contains("head of the audit log is gone"));
    assert!(place.open().verify().unwrap().trouble.unwrap().contains("in line 4"));
}

#[test]
fn trouble_that_cannot_be_put_on_record_goes_before_the_next_line() {
    let place = Place::new();
    let log = place.open();
    let whole = Arc::clone(&lock(&log.state).file);
    lock(&log.state).owed = Some("found".into());
    lock(&log.state).file = Arc::new(File::open(place.path()).unwrap());
    log.try_record(&event(1)).unwrap_err();
    assert_eq!((log.trouble().as_deref(), place.text().as_str()), (Some("found"), ""));
    lock(&log.state).file = whole;
    log.try_record(&event(1)).unwrap();
    let all = Query { limit: 9, ..Query::default() };
    let page = log.page(&all).unwrap();
    let actions: Vec<_> = page.lines.iter().map(|line| line.line.event.action.as_str()).collect();
    assert_eq!(actions, [TROUBLE, GAP, "key.unwrap"]);
}

#[test]
fn ended_files_that_were_deleted_are_noticed() {
    let place = Place::new();
    let gone = |trouble: Option<String>, before: u64| {
        let says = format!("lines up to {} of the audit log are gone", before - 1);
        assert!(trouble.as_ref().is_some_and(|it| it.contains(&says)), "{trouble:?}");
    };
    let log = place.open();
    (0..40).for_each(|n| log.record(&event(n)));
    assert_eq!((log.trouble(), log.verify().unwrap().trouble), (None, None));
    let ended = Files::of(&place.path()).ended().unwrap();
    assert_eq!(ended.len(), SMALL.kept);
    // While it is written: told at once by a look at all of it, and on record when the next file is begun.
    fs::remove_file(&ended[0].1).unwrap();
    gone(log.verify().unwrap().trouble, ended[1].0);
    (0..12).for_each(|n| log.record(&event(n)));
    gone(log.trouble(), ended[1].0);
    drop(log);
    gone(place.open().verify().unwrap().trouble, ended[1].0);

    // All of them, while no node runs.
    let place = Place::new();
    place.write(0..40);
    let files = Files::of(&place.path());
    files.ended().unwrap().iter().for_each(|(_, path)| fs::remove_file(path).unwrap());
    let first: HashedLine = serde_json::from_str(place.text().lines().next().unwrap()).unwrap();
    gone(place.trouble(), first.line.seq);
    gone(place.open().verify().unwrap().trouble, first.line.seq);
    // Its name is that of its first line still.
    let log = place.open();
    (0..12).for_each(|n| log.record(&event(n)));
    assert_eq!(files.ended().unwrap()[0].0, first.line.seq);
}

#[test]
fn no_line_is_taken_while_those_there_cannot_be_synced() {
    let place = Place::new();
    let mut log = place.open();
    log.record(&event(1));
    // The test syncs itself.
    drop(log.wake.take());
    log.syncer.take().unwrap().join().unwrap();
    let (wake, woken) = mpsc::sync_channel(1);
    wake.send(()).unwrap();
    drop(wake);
    let head = place.dir.path().join("audit.head");
    let (mut read_only, _) = Head::open(&head).unwrap();
    read_only.file = File::open(&head).unwrap();
    sync_when_woken(&log.state, &read_only, &woken);
    assert!(log.trouble().unwrap().contains("can't be synced"));
    assert!(log.try_record(&event(2)).unwrap_err().contains("can't be synced"));
    let verified = log.verify().unwrap();
    assert!(verified.unrecorded.unwrap().contains("can't be synced"));
    assert_eq!(verified.trouble, None, "the chain is whole");
    assert_eq!(place.text().lines().count(), 1);

    // It is tried again though no line comes.
    let (wake, woken) = mpsc::sync_channel(1);
    let (head, _) = Head::open(&head).unwrap();
    thread::scope(|scope| {
        let state = &log.state;
        scope.spawn(move || sync_when_woken(state, &head, &woken));
        while lock(state).unsynced.is_some() {
            thread::sleep(SYNC_WITHIN);
        }
        drop(wake);
    });
    log.try_record(&event(3)).unwrap();
    assert_eq!(log.verify().unwrap().trouble, None);
}

#[test]
fn what_could_not_be_recorded_is_told_by_a_line_once_there_is_room() {
    let place = Place::new();
    let log = place.open();
    log.record(&event(1));
    let whole = Arc::clone(&lock(&log.state).file);
    lock(&log.state).file = Arc::new(File::open(place.path()).unwrap());
    (2..5).for_each(|n| log.record(&event(n)));
    assert!(log.trouble().unwrap().contains("can't be written"));
    assert_eq!(place.text().lines().count(), 1);
    lock(&log.state).file = whole;
    log.record(&event(5));
    assert_eq!((log.trouble(), log.verify().unwrap().trouble), (None, None));
    let page = log.page(&Query { limit: 9, ..Query::default() }).unwrap();
    let actions: Vec<_> = page.lines.iter().map(|line| line.line.event.action.as_str()).collect();
    assert_eq!(actions, ["key.unwrap", GAP, "key.unwrap"]);
    let detail = &page.lines[1].line.event.detail;
    assert!(detail.starts_with("3 events from 2 to 4 "), "{detail}");
    drop(log);
    assert_eq!(place.trouble(), None);
}

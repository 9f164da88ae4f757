//! Copying into encryption: `coffer fs import` beside what administrators use for that.
//!
//! Each contestant copies the same source, which lies in the page cache, into a fresh target on the same
//! disk. The clock runs from the start of the command to the end of a `syncfs` of that disk. What can be
//! ready before a copy is: a node that runs, a gocryptfs that is mounted.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use walkdir::WalkDir;

use super::measure::{self, Sample};
use super::node::{Node, Place};
use super::report::{self, Bar, Bound, Row, Section};
use super::{Bench, progress};
use crate::process::{self, Background};

/// At least so many times as fast as each encrypting peer.
const BAR: f64 = 2.0;
/// An import's memory in MiB, at any size.
const MEMORY: f64 = 128.0;

/// What rclone does by itself, said here so that it stays: on two processors 2 to 16 of them differ by less than the noise.
const RCLONE: [&str; 4] = ["--transfers", "4", "--checkers", "8"];

pub(super) fn run(bench: &Bench<'_>) -> Result<Vec<Section>> {
    let tools = Tools::find(bench.folder)?;
    let mut sections = Vec::new();
    for kind in [Kind::File, Kind::Tree] {
        progress(&format!("import: making {}", kind.title(bench.quick)));
        let source = Source::make(kind, bench)?;
        sections.push(compare(bench, &tools, &source)?);
        fs::remove_dir_all(&source.folder)?;
    }
    Ok(sections)
}

fn compare(bench: &Bench<'_>, tools: &Tools, source: &Source) -> Result<Section> {
    let rounds = if bench.quick { 1 } else { 5 };
    let mut runs: Vec<(Contestant, Vec<Sample>)> =
        Contestant::ALL.map(|contestant| (contestant, Vec::new())).into();
    let count = runs.len();
    let used = bench.folder.join("used");
    fs::create_dir(&used)?;
    for round in 0..rounds {
        // Another one begins each round, and every other round goes backwards, so that nobody always
        // follows the same: what one leaves (memory to give back, a disk that is busy) slows the next.
        for turn in 0..count {
            let turn = if round % 2 == 0 { round + turn } else { round + count - turn };
            let (contestant, samples) = &mut runs[turn % count];
            let used = used.join(format!("{round}-{turn}"));
            let sample = once(bench, tools, source, *contestant, &used)
                .with_context(|| contestant.name().to_owned())?;
            progress(&format!(
                "import: round {} of {rounds}: {:<14}{:6.2} s",
                round + 1,
                contestant.name(),
                sample.seconds
            ));
            samples.push(sample);
        }
    }
    fs::remove_dir_all(used)?;

    let rows: Vec<Row> =
        runs.iter().map(|(who, samples)| Row::of(who.name(), samples, source.bytes)).collect();
    let median = |wanted| {
        let found = runs.iter().zip(&rows).find(|((who, _), _)| *who == wanted);
        found.map(|(_, row)| row.median()).context("a contestant did not run")
    };
    let ours = median(Contestant::Coffer)?;
    let busy = runs.iter().find(|(who, _)| *who == Contestant::Coffer);
    let busy = busy.map(|(_, samples)| report::busy(samples)).unwrap_or_default();
    let limit = limit(ours, median(Contestant::Cp)?, busy);
    let mut bars = Vec::new();
    for peer in [Contestant::Rclone, Contestant::Gocryptfs] {
        bars.push(Bar {
            what: format!("{} / coffer", peer.name()),
            value: median(peer)? / ours,
            unit: "×",
            bound: Bound::AtLeast(BAR),
            limit: limit.clone(),
        });
    }
    let peaks = report::peaks(runs.iter().flat_map(|(_, samples)| samples));
    let node = peaks.get(NODE).copied().context("the node's memory was not seen")?;
    bars.push(Bar {
        what: "peak memory of the node".to_owned(),
        value: node as f64 / f64::from(1 << 20),
        unit: "MiB",
        bound: Bound::AtMost(MEMORY),
        limit: "It holds more than the buffers of an import".to_owned(),
    });
    Ok(Section {
        title: format!("import: {}, rounds: {rounds}", source.kind.title(bench.quick)),
        rows,
        bars,
        notes: vec![
            format!("{}, {}", tools.rclone, RCLONE.join(" ")),
            format!("{}, AES-GCM, mounted before the clock starts", tools.gocryptfs),
        ],
        peaks,
    })
}

/// What keeps an import from being faster.
fn limit(ours: f64, plain: f64, busy: f64) -> String {
    let share = 100.0 * plain / ours;
    let plain =
        format!("{} takes {plain:.2} s, {share:.0} % of our {ours:.2} s", Contestant::Cp.name());
    let busy_percent = 100.0 * busy;
    if share >= 70.0 {
        format!("Not the encryption: {plain}, so the disk or other work on the machine")
    } else if busy >= 0.8 {
        format!("The processors, {busy_percent:.0} % busy; {plain}")
    } else {
        format!("Neither disk ({plain}) nor processors ({busy_percent:.0} % busy): work that waits")
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Tree,
}

impl Kind {
    pub(super) fn title(self, quick: bool) -> &'static str {
        match (self, quick) {
            (Self::File, false) => "a file of 2 GiB",
            (Self::File, true) => "a file of 256 MiB",
            (Self::Tree, false) => "a tree of 8,000 small files",
            (Self::Tree, true) => "a tree of 800 small files",
        }
    }
}

/// A directory to be copied.
pub(super) struct Source {
    pub(super) kind: Kind,
    pub(super) folder: PathBuf,
    pub(super) bytes: u64,
}

impl Source {
    const FILE: &str = "file";

    /// Writes random bytes, which nothing can compress, and leaves them in the page cache.
    pub(super) fn make(kind: Kind, bench: &Bench<'_>) -> Result<Self> {
        const DIRECTORIES: u64 = 80;
        const LARGEST: u64 = 16 << 10;
        let folder = bench.folder.join("source");
        fs::create_dir(&folder)?;
        let mut random = File::open("/dev/urandom")?;
        let mut bytes = 0;
        match kind {
            Kind::File => {
                bytes = if bench.quick { 256 << 20 } else { 2 << 30 };
                let mut file = File::create(folder.join(Self::FILE))?;
                let mut buffer = vec![0; 1 << 20];
                for _ in 0..bytes / buffer.len() as u64 {
                    random.read_exact(&mut buffer)?;
                    file.write_all(&buffer)?;
                    process::pause_for(Duration::ZERO)?;
                }
            }
            Kind::Tree => {
                let in_each = if bench.quick { 10 } else { 100 };
                for number in 0..DIRECTORIES * in_each {
                    let directory = folder.join(format!("directory-{:02}", number / in_each));
                    fs::create_dir_all(&directory)?;
                    // A prime that spreads the sizes evenly, the same ones in every run.
                    let size = number * 7919 % (LARGEST + 1);
                    let mut content = Vec::new();
                    Read::by_ref(&mut random).take(size).read_to_end(&mut content)?;
                    fs::write(directory.join(format!("file-{number:04}")), content)?;
                    bytes += size;
                }
            }
        }
        measure::sync(&folder)?;
        Ok(Self { kind, folder, bytes })
    }

    /// The directory's content, as `cp` is told it.
    fn content(&self) -> PathBuf {
        self.folder.join(".")
    }
}

/// The peers and how they are called here.
struct Tools {
    rclone: String,
    rclone_config: PathBuf,
    gocryptfs: String,
    fusermount: PathBuf,
    password: PathBuf,
}

impl Tools {
    fn find(folder: &Path) -> Result<Self> {
        const PASSWORD: &str = "bench";
        for name in ["rclone", "gocryptfs"] {
            ensure!(
                process::on_path(name).is_some(),
                "{name} is not on PATH; on Debian: apt-get install rclone gocryptfs"
            );
        }
        let version = |program: &str| -> Result<String> {
            let said = process::output(Command::new(program).arg("--version"))?;
            Ok(said.lines().next().unwrap_or_default().split(';').next().unwrap_or_default().into())
        };
        let obscured = process::output(Command::new("rclone").args(["obscure", PASSWORD]))?;
        let rclone_config = folder.join("rclone.conf");
        let remote = folder.join(TARGET);
        let config =
            format!("[crypt]\ntype = crypt\nremote = {}\npassword = {obscured}", remote.display());
        fs::write(&rclone_config, config)?;
        let password = folder.join("password");
        fs::write(&password, PASSWORD)?;
        let fusermount = ["fusermount3", "fusermount"].into_iter().find_map(process::on_path);
        Ok(Self {
            rclone: version("rclone")?,
            rclone_config,
            gocryptfs: version("gocryptfs")?,
            fusermount: fusermount.context("fusermount is not on PATH")?,
            password,
        })
    }
}

/// What the copies go into, in the benchmark's folder.
const TARGET: &str = "target";
/// What the node is called in the report.
const NODE: &str = "coffer serve";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Contestant {
    Coffer,
    /// What the disk takes without encryption.
    Cp,
    Rclone,
    Gocryptfs,
}

impl Contestant {
    const ALL: [Self; 4] = [Self::Coffer, Self::Cp, Self::Rclone, Self::Gocryptfs];

    fn name(self) -> &'static str {
        match self {
            Self::Coffer => "coffer fs import",
            Self::Cp => "cp -a, plain",
            Self::Rclone => "rclone crypt",
            Self::Gocryptfs => "gocryptfs",
        }
    }
}

/// One run into a fresh target, which is out of the way before the next: removed, or moved to `used`.
fn once(
    bench: &Bench<'_>,
    tools: &Tools,
    source: &Source,
    contestant: Contestant,
    used: &Path,
) -> Result<Sample> {
    let target = bench.folder.join(TARGET);
    fs::create_dir(&target)?;
    let log = bench.folder.join("copy.log");
    let sample = match contestant {
        Contestant::Coffer => coffer(bench, source, &target, &log),
        Contestant::Gocryptfs => gocryptfs(bench, tools, source, &target, &log),
        Contestant::Cp => measure::command(&mut cp(source, &target), &log, &[], &target),
        Contestant::Rclone => {
            let mut rclone = Command::new("rclone");
            rclone.arg("--config").arg(&tools.rclone_config);
            rclone.args(RCLONE).arg("copy").arg(&source.folder).arg("crypt:");
            measure::command(&mut rclone, &log, &[], &target)
        }
    }?;
    // Nobody is quick by leaving something out.
    let written = size(&target)?;
    ensure!(written >= source.bytes, "wrote {written} of {} bytes", source.bytes);
    match source.kind {
        Kind::File => fs::remove_dir_all(&target)?,
        // ext4 looks, for each new file, through all that were deleted in the last five minutes
        // (RECENTCY_DIRTY), which would cost every later turn more than the copy.
        Kind::Tree => fs::rename(&target, used)?,
    }
    measure::sync(bench.folder)?;
    // The kernel takes a while to give back what was freed.
    process::pause_for(Duration::from_secs(if bench.quick { 0 } else { 3 }))?;
    Ok(sample)
}

fn cp(source: &Source, target: &Path) -> Command {
    let mut cp = Command::new("cp");
    cp.args(["-a", "--"]).arg(source.content()).arg(target);
    cp
}

fn size(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in WalkDir::new(folder) {
        let entry = entry?;
        if entry.file_type().is_file() {
            bytes += entry.metadata()?.len();
        }
    }
    Ok(bytes)
}

fn coffer(bench: &Bench<'_>, source: &Source, target: &Path, log: &Path) -> Result<Sample> {
    const NAME: &str = "bench";
    let folder = bench.folder.join("node");
    let place = Place::new(&bench.program, &folder)?;
    let node = Node::start(&place)?;
    let backing = target.display().to_string();
    place.coffer(&["fs", "create", NAME, "--allow-no-kms", "--backing", &backing])?;
    measure::sync(bench.folder)?;
    let mut import = place.command(&["fs", "import", NAME, &source.folder.display().to_string()]);
    let sample = measure::command(&mut import, log, &[(NODE, node.id())], target)?;
    drop(node);
    fs::remove_dir_all(folder)?;
    Ok(sample)
}

fn gocryptfs(
    bench: &Bench<'_>,
    tools: &Tools,
    source: &Source,
    target: &Path,
    log: &Path,
) -> Result<Sample> {
    let mut init = Command::new("gocryptfs");
    // The cheapest key derivation: it is not what is measured.
    init.args(["-q", "-init", "-scryptn", "10", "-passfile"]).arg(&tools.password).arg(target);
    process::run(&mut init)?;
    let mount = Mount::new(tools, target, &bench.folder.join("mount"))?;
    measure::sync(bench.folder)?;
    let beside = [("gocryptfs", mount.process.id())];
    measure::command(&mut cp(source, &mount.point), log, &beside, target)
}

/// A mounted gocryptfs; unmounted when this is dropped.
struct Mount<'a> {
    process: Background,
    point: PathBuf,
    fusermount: &'a Path,
}

impl<'a> Mount<'a> {
    fn new(tools: &'a Tools, cipher: &Path, point: &Path) -> Result<Self> {
        fs::create_dir_all(point)?;
        let plain = fs::metadata(point)?.dev();
        let mut command = Command::new("gocryptfs");
        command.args(["-q", "-fg", "-passfile"]).arg(&tools.password).arg(cipher).arg(point);
        let log = point.with_extension("log");
        let process = Background::start(&mut command, &log)?;
        let mut mount = Self { process, point: point.to_owned(), fusermount: &tools.fusermount };
        let is_mounted = || fs::metadata(point).is_ok_and(|there| there.dev() != plain);
        mount.process.wait_until(is_mounted).context("gocryptfs")?;
        Ok(mount)
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        // Lazily, so that it is gone from the tree even if something holds it; gocryptfs then ends.
        let unmount = Command::new(self.fusermount).args(["-u", "-z"]).arg(&self.point).output();
        if !unmount.is_ok_and(|output| output.status.success()) {
            eprintln!("warning: {} may still be mounted", self.point.display());
        }
    }
}

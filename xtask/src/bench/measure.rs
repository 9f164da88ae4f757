//! One command, measured: its time with a sync behind it, the processors' load, and peak memory.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::process::{self, Background};

/// What one run took.
pub(super) struct Sample {
    pub(super) seconds: f64,
    /// How busy the machine's processors were, 0 to 1, whoever used them.
    pub(super) busy: f64,
    /// Peak memory in bytes by process.
    pub(super) peaks: Peaks,
}

/// Peak resident memory in bytes by process.
pub(super) type Peaks = BTreeMap<String, u64>;

/// Keeps the higher of two peaks.
pub(super) fn raise(peaks: &mut Peaks, process: &str, bytes: u64) {
    let peak = peaks.entry(process.to_owned()).or_default();
    *peak = bytes.max(*peak);
}

/// Runs a command, then syncs the filesystem of `synced`; the clock stops when both are done.
///
/// `beside` are the processes that work for it, by what they are called in the report. They are young,
/// so that their peak is this run's.
pub(super) fn command(
    command: &mut Command,
    log: &Path,
    beside: &[(&str, u32)],
    synced: &Path,
) -> Result<Sample> {
    // A peak only rises, so that a look now and then misses no more than the last moment's growth.
    const LOOK_EVERY: Duration = Duration::from_millis(2);
    let name = Path::new(command.get_program()).file_name().unwrap_or_default();
    let name = name.to_string_lossy().into_owned();
    let mut peaks = Peaks::new();
    let processors = Processors::now()?;
    let began = Instant::now();
    let mut child = Background::start(command, log)?;
    while child.is_running().with_context(|| process::show(command))? {
        if let Some(bytes) = peak_memory(child.id()) {
            raise(&mut peaks, &name, bytes);
        }
        process::pause_for(LOOK_EVERY)?;
    }
    sync(synced)?;
    let seconds = began.elapsed().as_secs_f64();
    let busy = processors.busy_since()?;
    for (name, id) in beside {
        let bytes = peak_memory(*id).with_context(|| format!("{name} has ended"))?;
        raise(&mut peaks, name, bytes);
    }
    Ok(Sample { seconds, busy, peaks })
}

/// `syncfs(2)`: everything on that filesystem is on the disk.
pub(super) fn sync(folder: &Path) -> Result<()> {
    Ok(rustix::fs::syncfs(File::open(folder)?)?)
}

/// A process's peak resident memory in bytes, while it lives (`VmHWM`, proc_pid_status(5)).
pub(super) fn peak_memory(id: u32) -> Option<u64> {
    memory(id, "VmHWM:")
}

/// Its resident memory at this moment (`VmRSS`).
pub(super) fn memory_now(id: u32) -> Option<u64> {
    memory(id, "VmRSS:")
}

fn memory(id: u32, which: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(which))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// How long a process has used processors, to a hundredth of a second (utime and stime, proc_pid_stat(5)).
pub(super) fn processor_time(id: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
    // The second field, in brackets, is the program's name and may hold anything.
    let (_, fields) = stat.rsplit_once(')').context("/proc/<id>/stat names no program")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
    let ticks: u64 = ticks.sum::<Result<u64, _>>()?;
    // USER_HZ is 100 on all of Linux's platforms.
    Ok(Duration::from_millis(ticks * 10))
}

/// What the processors did since the machine started, in ticks (proc_stat(5)).
struct Processors {
    all: u64,
    idle: u64,
}

impl Processors {
    fn now() -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat")?;
        let line = stat.lines().next().and_then(|line| line.strip_prefix("cpu "));
        let ticks = line.context("/proc/stat begins with no total")?.split_whitespace();
        // user, nice, system, idle, iowait, irq, softirq, steal; guests are in user.
        let ticks = ticks.take(8).map(str::parse).collect::<Result<Vec<u64>, _>>()?;
        let [.., idle, iowait, _, _, _] = ticks[..] else {
            anyhow::bail!("/proc/stat has too few columns")
        };
        Ok(Self { all: ticks.iter().sum(), idle: idle + iowait })
    }

    fn busy_since(&self) -> Result<f64> {
        let now = Self::now()?;
        let all = (now.all - self.all).max(1);
        Ok(1.0 - now.idle.saturating_sub(self.idle) as f64 / all as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_is_what_the_process_used() {
        let before = peak_memory(std::process::id()).unwrap();
        let held = std::hint::black_box(vec![1_u8; 64 << 20]);
        let after = peak_memory(std::process::id()).unwrap();
        assert!(after >= before.max(held.len() as u64), "{before} {after}");
    }

    #[test]
    fn a_command_is_timed_and_its_failure_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let sample = command(Command::new("sleep").arg("0.2"), &log, &[], folder.path()).unwrap();
        assert!(sample.seconds >= 0.2);
        assert!(sample.peaks["sleep"] > 0);
        assert!((0.0..=1.0).contains(&sample.busy));
        assert!(command(&mut Command::new("false"), &log, &[], folder.path()).is_err());
    }
}

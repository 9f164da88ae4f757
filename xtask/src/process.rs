//! Child processes: run to the end, or kept running and stopped by their id. An interrupt stops
//! them too, and then unwinds as an error, so that what was begun is cleaned up.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From here on Ctrl-C, SIGTERM and SIGHUP make [`pause`] and whatever waits for a child fail.
pub(crate) fn catch_interrupts() -> Result<()> {
    Ok(ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::SeqCst))?)
}

pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// A moment's wait.
pub(crate) fn pause() -> Result<()> {
    pause_for(Duration::from_millis(20))
}

/// A wait of another length.
pub(crate) fn pause_for(time: Duration) -> Result<()> {
    ensure!(!interrupted(), "interrupted");
    sleep(time);
    Ok(())
}

/// Runs a command with its output on ours.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let child = command.spawn().with_context(|| format!("cannot start {}", show(command)))?;
    let status = Guarded(child).wait()?;
    check(command, status)
}

/// Runs a command and returns what it prints; its errors go to ours.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {}", show(command)))?;
    check(command, output.status)?;
    Ok(String::from_utf8(output.stdout)?)
}

fn check(command: &Command, status: ExitStatus) -> Result<()> {
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => bail!("{} failed with exit code {code}", show(command)),
        (None, signal) => {
            bail!("{} was ended by signal {}", show(command), signal.unwrap_or_default())
        }
    }
}

/// The command line as a person would type it.
pub(crate) fn show(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// The file that a command name stands for on `PATH`.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// A child that ends with this value at the latest.
struct Guarded(Child);

impl Guarded {
    fn wait(mut self) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status);
            }
            pause()?;
        }
    }
}

impl Drop for Guarded {
    /// Asks it to end, waits, and insists.
    fn drop(&mut self) {
        const PATIENCE: Duration = Duration::from_secs(10);
        if !matches!(self.0.try_wait(), Ok(None)) {
            return;
        }
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let asked = Instant::now();
        while asked.elapsed() < PATIENCE {
            if !matches!(self.0.try_wait(), Ok(None)) {
                return;
            }
            sleep(Duration::from_millis(20));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process that runs beside us, its output in a log. Dropped, it is ended.
pub(crate) struct Background {
    child: Guarded,
    log: PathBuf,
}

impl Background {
    pub(crate) fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {}", show(command)))?;
        Ok(Self { child: Guarded(child), log: log.to_owned() })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.0.id()
    }

    /// Waits for its end; a failure shows the last lines of the log.
    pub(crate) fn finish(self) -> Result<()> {
        let status = self.child.wait()?;
        ensure!(status.success(), "ended with {status}; {}", tail(&self.log));
        Ok(())
    }

    /// Whether it still runs; an end in failure is an error.
    pub(crate) fn is_running(&mut self) -> Result<bool> {
        let Some(status) = self.child.0.try_wait()? else { return Ok(true) };
        ensure!(status.success(), "ended with {status}; {}", tail(&self.log));
        Ok(false)
    }

    /// Waits until what it serves answers.
    pub(crate) fn wait_until(&mut self, answers: impl Fn() -> bool) -> Result<()> {
        const PATIENCE: Duration = Duration::from_secs(30);
        let began = Instant::now();
        while !answers() {
            if let Some(status) = self.child.0.try_wait()? {
                bail!("ended with {status}; {}", tail(&self.log));
            }
            ensure!(began.elapsed() < PATIENCE, "does not answer; {}", tail(&self.log));
            pause()?;
        }
        Ok(())
    }
}

fn tail(log: &Path) -> String {
    const LINES: usize = 20;
    let content = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&content);
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(LINES)..];
    format!("the end of {}:\n{}", log.display(), last.join("\n"))
}

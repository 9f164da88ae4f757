//! Kills a process at one of its system calls.
//!
//! The process runs under ptrace(2), unhindered at first. Once armed, each system call that changes something on disk is counted at its
//! entry, over all threads; at the one that was asked for, the process gets SIGKILL before the call is done. Trying each
//! number in turn visits every state that a kill -9 can leave behind between two changes. (Within one call, a kill
//! leaves at most a write that stopped at a page's boundary.)

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::FileExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// A process under watch.
pub struct Watched {
    pid: Pid,
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    armed: AtomicBool,
    /// Whether every call of every thread is seen.
    counts: AtomicBool,
    steps: Mutex<Vec<String>>,
    killed: AtomicBool,
}

impl Watched {
    /// Starts `command`. After [`Watched::arm`] it is killed at the `kill_at`-th changing system call, counted from 1; 0 only counts.
    pub fn start(command: Command, kill_at: u64) -> Self {
        Self::start_until(command, move |steps| steps.len() as u64 == kill_at)
    }

    /// Kills it at the last of the [steps](Watched::steps) until now for which `is_the_end`.
    pub fn start_until(
        command: Command,
        is_the_end: impl Fn(&[String]) -> bool + Send + 'static,
    ) -> Self {
        let shared = Arc::new(Shared::default());
        let (send, receive) = mpsc::channel();
        // Only the thread that traces a process may steer it, so one thread does it all.
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || watch(command, &is_the_end, &shared, &send)
        });
        let pid = receive.recv().unwrap();
        Self { pid, shared, thread }
    }

    /// Begins to count: what any thread does after this is seen.
    pub fn arm(&self) {
        self.shared.armed.store(true, Ordering::SeqCst);
        let _ = nix::sys::signal::kill(self.pid, WAKES);
        while !self.shared.counts.load(Ordering::SeqCst) && !self.thread.is_finished() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The changing calls so far, each by its name and that of what it changes; `#` is one that differs from run to run.
    pub fn steps(&self) -> Vec<String> {
        self.shared.steps.lock().unwrap().clone()
    }

    /// Whether the kill has happened.
    pub fn was_killed(&self) -> bool {
        self.shared.killed.load(Ordering::SeqCst)
    }

    /// Waits until the process ends, by itself or killed. Answers whether it was killed at the call that was asked for.
    pub fn wait(self) -> bool {
        self.thread.join().unwrap();
        self.shared.killed.load(Ordering::SeqCst)
    }

    /// Ends the process if it still runs, and waits for its end. Answers whether it was killed at the call that was asked for.
    pub fn end(self) -> bool {
        let killed = self.was_killed();
        let _ = nix::sys::signal::kill(self.pid, Signal::SIGKILL);
        self.thread.join().unwrap();
        killed
    }
}

/// Ends the tracer's waiting for a process that does nothing. It is not passed on.
const WAKES: Signal = Signal::SIGURG;

fn watch(
    mut command: Command,
    is_the_end: &dyn Fn(&[String]) -> bool,
    shared: &Shared,
    started: &mpsc::Sender<Pid>,
) {
    let mut child = command.spawn().unwrap();
    let main = Pid::from_raw(child.id().cast_signed());
    let options =
        Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL;
    ptrace::seize(main, options).unwrap();
    // Threads that it made before this moment are not followed by the option above.
    for thread in threads(main).into_iter().filter(|thread| *thread != main) {
        let _ = ptrace::seize(thread, options);
        let _ = ptrace::interrupt(thread);
    }
    ptrace::interrupt(main).unwrap();
    started.send(main).unwrap();

    let own = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
    // The threads that still run on to their next stop without a look at their calls, once it is armed.
    let mut unseen: Option<HashSet<Pid>> = None;
    loop {
        let (pid, signal) = match waitpid(None, Some(own)) {
            Err(Errno::ECHILD) => break,
            Err(error) => panic!("waitpid: {error}"),
            Ok(WaitStatus::PtraceSyscall(pid)) => {
                if shared.armed.load(Ordering::SeqCst)
                    && let Some(step) = change(pid)
                {
                    let mut steps = shared.steps.lock().unwrap();
                    steps.push(step);
                    if is_the_end(&steps) {
                        shared.killed.store(true, Ordering::SeqCst);
                        let _ = nix::sys::signal::kill(main, Signal::SIGKILL);
                        continue;
                    }
                }
                (pid, None)
            }
            Ok(WaitStatus::Stopped(pid, signal)) => (pid, (signal != WAKES).then_some(signal)),
            Ok(WaitStatus::PtraceEvent(pid, _, _)) => (pid, None),
            Ok(status) => {
                if let (Some(unseen), Some(pid)) = (&mut unseen, status.pid()) {
                    unseen.remove(&pid);
                }
                continue;
            }
        };
        // A thread that was just killed can't be resumed.
        if !shared.armed.load(Ordering::SeqCst) {
            let _ = ptrace::cont(pid, signal);
            continue;
        }
        let unseen = unseen.get_or_insert_with(|| interrupt_all(main));
        unseen.remove(&pid);
        if unseen.is_empty() {
            shared.counts.store(true, Ordering::SeqCst);
        }
        let _ = ptrace::syscall(pid, signal);
    }
    let _ = child.wait();
}

/// Stops every thread that can be, each of which is told of by a stop of its own.
fn interrupt_all(process: Pid) -> HashSet<Pid> {
    threads(process).into_iter().filter(|thread| ptrace::interrupt(*thread).is_ok()).collect()
}

fn threads(process: Pid) -> Vec<Pid> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten();
    let id = |task: std::io::Result<std::fs::DirEntry>| {
        task.ok()?.file_name().to_string_lossy().parse().ok().map(Pid::from_raw)
    };
    tasks.filter_map(id).collect()
}

/// What the thread is about to change on disk, if it is about to.
fn change(pid: Pid) -> Option<String> {
    const ENTRY: u8 = 1; // PTRACE_SYSCALL_INFO_ENTRY
    ptrace::syscall_info(pid).ok().filter(|info| info.op == ENTRY)?;
    let registers = ptrace::getregs(pid).ok()?;
    let number = registers.orig_rax.cast_signed();
    let call = *CALLS.get(&number)?;
    let path = if BY_DESCRIPTOR.contains(&number) {
        // Sockets, pipes and eventfds have no path.
        let path = std::fs::read_link(format!("/proc/{pid}/fd/{}", registers.rdi)).ok()?;
        let is_device = path.starts_with("/dev") && !path.starts_with("/dev/shm");
        (path.is_absolute() && !is_device).then(|| path.display().to_string())?
    } else {
        let makes = registers.rdx & (libc::O_CREAT | libc::O_TRUNC) as u64 != 0;
        if number == libc::SYS_openat && !makes {
            return None;
        }
        text_at(
            pid,
            match number {
                libc::SYS_renameat | libc::SYS_renameat2 | libc::SYS_linkat => registers.r10,
                libc::SYS_symlinkat => registers.rdx,
                libc::SYS_rename | libc::SYS_link | libc::SYS_symlink => registers.rsi,
                _ if AFTER_A_DIRECTORY.contains(&number) => registers.rsi,
                _ => registers.rdi,
            },
        )
    };
    Some(format!("{} {}", call.trim_start_matches("SYS_"), alike(&path)))
}

/// The text that a process has at this address.
fn text_at(pid: Pid, address: u64) -> String {
    let mut text = [0; 256];
    let memory = std::fs::File::open(format!("/proc/{pid}/mem"));
    let length = memory.and_then(|memory| memory.read_at(&mut text, address)).unwrap_or(0);
    let text = text[..length].split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// The last part of a path with `#` for a digit, or `#` if it looks like an id, a number or a sealed name.
fn alike(path: &str) -> String {
    const LONGEST: usize = 20;
    let name = path.rsplit('/').next().unwrap_or_default();
    let digits = name.bytes().filter(u8::is_ascii_digit).count();
    if name.len() > LONGEST || digits > 1 || digits == name.len() {
        return "#".to_owned();
    }
    name.replace(|c: char| c.is_ascii_digit(), "#")
}

macro_rules! calls {
    ($($call:ident,)*) => {
        HashMap::from([$((libc::$call, stringify!($call)),)*])
    };
}

/// All that change something, with their names.
static CALLS: LazyLock<HashMap<i64, &str>> = LazyLock::new(|| {
    calls! {
        SYS_openat,
        SYS_mkdir,
        SYS_mkdirat,
        SYS_mknodat,
        SYS_unlink,
        SYS_unlinkat,
        SYS_rmdir,
        SYS_rename,
        SYS_renameat,
        SYS_renameat2,
        SYS_link,
        SYS_linkat,
        SYS_symlink,
        SYS_symlinkat,
        SYS_chmod,
        SYS_fchmodat,
        SYS_fchownat,
        SYS_utimensat,
        SYS_setxattr,
        SYS_lsetxattr,
        SYS_removexattr,
        SYS_lremovexattr,
        SYS_truncate,
        SYS_write,
        SYS_writev,
        SYS_pwrite64,
        SYS_pwritev,
        SYS_ftruncate,
        SYS_fallocate,
        SYS_fsync,
        SYS_fdatasync,
        SYS_sync_file_range,
        SYS_syncfs,
        SYS_fchmod,
        SYS_fchown,
        SYS_fsetxattr,
        SYS_fremovexattr,
        SYS_copy_file_range,
    }
});

/// Those of them whose path stands behind the directory that it begins in.
const AFTER_A_DIRECTORY: &[i64] = &[
    libc::SYS_openat,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_unlinkat,
    libc::SYS_fchmodat,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
];

/// Those that change what is open.
const BY_DESCRIPTOR: &[i64] = &[
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_syncfs,
    libc::SYS_fchmod,
    libc::SYS_fchown,
    libc::SYS_fsetxattr,
    libc::SYS_fremovexattr,
    libc::SYS_copy_file_range,
];

//! Kills a process at one of its system calls.
//!
//! The process runs under ptrace(2). Once armed, each system call that changes something on disk is counted at its
//! entry, over all threads; at the one that was asked for, the process gets SIGKILL before the call is done. Trying each
//! number in turn visits every state that a kill -9 can leave behind between two changes. (Within one call, a kill
//! leaves at most a write that stopped at a page's boundary.)

use std::collections::HashSet;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, mpsc};
use std::thread::JoinHandle;

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
    count: AtomicU64,
    killed: AtomicBool,
}

impl Watched {
    /// Starts `command`. After [`Watched::arm`] it is killed at the `kill_at`-th changing system call, counted from 1; 0 only counts.
    pub fn start(command: Command, kill_at: u64) -> Self {
        let shared = Arc::new(Shared::default());
        let (send, receive) = mpsc::channel();
        // Only the thread that traces a process may steer it, so one thread does it all.
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || watch(command, kill_at, &shared, &send)
        });
        let pid = receive.recv().unwrap();
        Self { pid, shared, thread }
    }

    /// Begins to count.
    pub fn arm(&self) {
        self.shared.armed.store(true, Ordering::SeqCst);
    }

    /// The changing calls so far.
    pub fn count(&self) -> u64 {
        self.shared.count.load(Ordering::SeqCst)
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

fn watch(mut command: Command, kill_at: u64, shared: &Shared, started: &mpsc::Sender<Pid>) {
    let mut child = command.spawn().unwrap();
    let main = Pid::from_raw(child.id().cast_signed());
    let options =
        Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL;
    ptrace::seize(main, options).unwrap();
    // Threads that it made before this moment are not followed by the option above.
    for task in std::fs::read_dir(format!("/proc/{main}/task")).unwrap() {
        let task = task.unwrap().file_name().to_string_lossy().parse().unwrap();
        if task != main.as_raw() {
            let _ = ptrace::seize(Pid::from_raw(task), options);
            let _ = ptrace::interrupt(Pid::from_raw(task));
        }
    }
    ptrace::interrupt(main).unwrap();
    started.send(main).unwrap();

    let own = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
    loop {
        let (pid, signal) = match waitpid(None, Some(own)) {
            Err(Errno::ECHILD) => break,
            Err(error) => panic!("waitpid: {error}"),
            Ok(WaitStatus::PtraceSyscall(pid)) => {
                if shared.armed.load(Ordering::SeqCst) && enters_a_change(pid) {
                    let count = shared.count.fetch_add(1, Ordering::SeqCst) + 1;
                    if count == kill_at {
                        shared.killed.store(true, Ordering::SeqCst);
                        let _ = nix::sys::signal::kill(main, Signal::SIGKILL);
                        continue;
                    }
                }
                (pid, None)
            }
            Ok(WaitStatus::Stopped(pid, signal)) => (pid, Some(signal)),
            Ok(WaitStatus::PtraceEvent(pid, _, _)) => (pid, None),
            Ok(_) => continue,
        };
        // A thread that was just killed can't be resumed.
        let _ = ptrace::syscall(pid, signal);
    }
    let _ = child.wait();
}

/// Whether the thread is about to change something on disk.
fn enters_a_change(pid: Pid) -> bool {
    const ENTRY: u8 = 1; // PTRACE_SYSCALL_INFO_ENTRY
    let Ok(info) = ptrace::syscall_info(pid) else { return false };
    let Ok(registers) = ptrace::getregs(pid) else { return false };
    let number = registers.orig_rax.cast_signed();
    if info.op != ENTRY || !(BY_NAME.contains(&number) || BY_DESCRIPTOR.contains(&number)) {
        return false;
    }
    if number == libc::SYS_openat {
        return registers.rdx & (libc::O_CREAT | libc::O_TRUNC) as u64 != 0;
    }
    if BY_DESCRIPTOR.contains(&number) {
        // Sockets, pipes and eventfds have no path.
        let target = std::fs::read_link(format!("/proc/{pid}/fd/{}", registers.rdi));
        return target.is_ok_and(|path| {
            let is_device = path.starts_with("/dev") && !path.starts_with("/dev/shm");
            path.is_absolute() && !is_device
        });
    }
    true
}

static BY_NAME: LazyLock<HashSet<i64>> = LazyLock::new(|| {
    HashSet::from([
        libc::SYS_openat,
        libc::SYS_mkdir,
        libc::SYS_mkdirat,
        libc::SYS_mknodat,
        libc::SYS_unlink,
        libc::SYS_unlinkat,
        libc::SYS_rmdir,
        libc::SYS_rename,
        libc::SYS_renameat,
        libc::SYS_renameat2,
        libc::SYS_link,
        libc::SYS_linkat,
        libc::SYS_symlink,
        libc::SYS_symlinkat,
        libc::SYS_chmod,
        libc::SYS_fchmodat,
        libc::SYS_fchownat,
        libc::SYS_utimensat,
        libc::SYS_setxattr,
        libc::SYS_lsetxattr,
        libc::SYS_removexattr,
        libc::SYS_lremovexattr,
        libc::SYS_truncate,
    ])
});

static BY_DESCRIPTOR: LazyLock<HashSet<i64>> = LazyLock::new(|| {
    HashSet::from([
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
    ])
});

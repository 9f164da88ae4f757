//! A node of the built program in a temporary directory, and the commands that a person would type to it.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// The directory that a node lives in; it outlives the node's processes.
pub struct Place {
    dir: tempfile::TempDir,
    /// Whose it is, if not this process's own.
    user: Option<u32>,
}

/// Nobody's user and group on Linux.
const NOBODY: u32 = 65534;

impl Default for Place {
    fn default() -> Self {
        Self::new()
    }
}

impl Place {
    /// An empty one.
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), user: None }
    }

    /// An empty one in memory, where nothing waits for a disk.
    pub fn in_memory() -> Self {
        Self { dir: tempfile::tempdir_in("/dev/shm").unwrap(), user: None }
    }

    /// An empty one of a user who is not root: nobody, or whoever runs the test. Its node and the commands to it run as that user.
    pub fn of_ordinary_user() -> Self {
        let place = Self::new();
        if !nix::unistd::geteuid().is_root() {
            return place;
        }
        // The program may lie where only root comes.
        fs::copy(program(), place.path("coffer")).unwrap();
        std::os::unix::fs::chown(place.path(""), Some(NOBODY), Some(NOBODY)).unwrap();
        Self { user: Some(NOBODY), ..place }
    }

    /// Makes this and all below the user's.
    pub fn hand_over(&self, path: &Path) {
        if let Some(user) = self.user {
            let owner = format!("{user}:{user}");
            let status = Command::new("chown").args(["-hR", &owner]).arg(path).status().unwrap();
            assert!(status.success());
        }
    }

    fn command(&self) -> Command {
        match self.user {
            None => Command::new(program()),
            Some(user) => {
                let mut command = Command::new(self.path("coffer"));
                command.uid(user).gid(user);
                command
            }
        }
    }

    /// A copy of everything in this place, elsewhere. The node is not running.
    pub fn copy(&self) -> Self {
        let beside = self.dir.path().parent().unwrap();
        let copy = Self { dir: tempfile::tempdir_in(beside).unwrap(), user: None };
        copy_into(self.dir.path(), copy.dir.path());
        copy
    }

    /// Puts this place back to what `saved`, a copy of it, holds. The node is not running.
    pub fn restore(&self, saved: &Self) {
        for entry in fs::read_dir(self.dir.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
        }
        copy_into(saved.dir.path(), self.dir.path());
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The state directory.
    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// The admin socket. Short, as such paths have to be.
    pub fn socket(&self) -> PathBuf {
        self.path("s")
    }

    /// The configuration file that the node is started with, if there is one.
    pub fn config(&self) -> PathBuf {
        self.path("coffer.toml")
    }

    /// The node's log, of all its runs.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// The command that runs the node here.
    pub fn serve(&self) -> Command {
        let mut command = self.command();
        command
            .arg("serve")
            .arg("--state-dir")
            .arg(self.state())
            .arg("--socket")
            .arg(self.socket());
        if self.config().exists() {
            command.arg("--config").arg(self.config());
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::options().create(true).append(true).open(self.path("log")).unwrap());
        command
    }

    /// Starts the node and waits until it answers.
    pub fn start(&self) -> Node<'_> {
        let child = self.serve().spawn().unwrap();
        let mut node = Node { place: self, child: Some(child) };
        node.wait_until_it_answers();
        node
    }

    /// Runs the node where it must refuse to start, on a socket of its own, and gives what it said.
    ///
    /// # Panics
    /// If it runs.
    pub fn serve_refused(&self) -> Answer {
        let mut command = Command::new("timeout");
        command.arg("20").arg(program()).args(["serve", "--state-dir"]).arg(self.state());
        let Output { status, stdout, stderr } =
            command.arg("--socket").arg(self.path("s2")).output().unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        assert_ne!(status.code(), Some(124), "the node runs:\n{stderr}");
        let stdout = String::from_utf8(stdout).unwrap();
        Answer { line: "serve".to_owned(), code: status.code().unwrap_or(-1), stdout, stderr }
    }

    /// Waits until something answers on the socket.
    pub fn wait_for_socket(&self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            if UnixStream::connect(self.socket()).is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }

    /// Runs a command of the program, with nothing on stdin.
    pub fn coffer<S: AsRef<str>>(&self, args: &[S]) -> Answer {
        self.coffer_with_input(args, "")
    }

    /// A command of the program, not run yet.
    pub fn command_line<S: AsRef<str>>(&self, args: &[S]) -> Command {
        let mut command = self.command();
        command.args(args.iter().map(AsRef::as_ref)).env("COFFER_SOCKET", self.socket());
        command
    }

    /// Runs a command of the program with this on stdin. The socket goes in by the environment.
    pub fn coffer_with_input<S: AsRef<str>>(&self, args: &[S], input: &str) -> Answer {
        let args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
        let mut child = self
            .command_line(&args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that does not read its input may be gone already.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
        Answer {
            line: args.join(" "),
            code: status.code().unwrap_or(-1),
            stdout: String::from_utf8(stdout).unwrap(),
            stderr: String::from_utf8(stderr).unwrap(),
        }
    }

    /// Runs a command that must succeed, and gives what it printed.
    pub fn ok<S: AsRef<str>>(&self, args: &[S]) -> String {
        self.coffer(args).expect(0).stdout
    }

    /// Runs a command that must succeed with `--json`, and gives the answer.
    pub fn json<S: AsRef<str>>(&self, args: &[S]) -> Value {
        let mut args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
        args.push("--json");
        let out = self.ok(&args);
        serde_json::from_str(&out)
            .unwrap_or_else(|e| panic!("{args:?} answers no JSON: {e}\n{out}"))
    }

    /// Runs a command that must fail with this exit code, and gives what it wrote to stderr: what to do is in it.
    pub fn fails<S: AsRef<str>>(&self, code: i32, args: &[S]) -> String {
        let answer = self.coffer(args).expect(code);
        assert!(answer.says_what_to_do(), "{answer:?}");
        answer.stderr
    }

    /// Sets the KMS with a token in a file, as the documentation advises.
    pub fn set_vault(&self, kms: &crate::kms::Kms) {
        let file = self.path("token");
        fs::write(&file, kms.token()).unwrap();
        let file = file.to_str().unwrap();
        self.ok(&["fs", "kms", "set-vault", kms.url(), crate::kms::KEY, "--token-file", file]);
    }

    /// Waits until something holds, which `what` names.
    pub fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !holds() {
            assert!(Instant::now() < deadline, "not yet: {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until a filesystem is in this state (`unlocked`, `locked`).
    pub fn wait_for_state(&self, fs: &str, state: &str) -> Value {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let shown = self.json(&["fs", "show", fs]);
            if shown["state"] == state {
                return shown;
            }
            assert!(Instant::now() < deadline, "{fs} is not {state}: {shown}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until a filesystem is locked for a reason with this code.
    pub fn wait_for_problem(&self, fs: &str, code: &str) -> Value {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let shown = self.json(&["fs", "show", fs]);
            if shown["problem"]["code"] == code {
                return shown;
            }
            assert!(Instant::now() < deadline, "no {code} of {fs}: {shown}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What Prometheus would see.
    pub fn metrics(&self) -> String {
        let socket = self.socket();
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--fail", "http://coffer/metrics", "--unix-socket"]).arg(&socket);
        let answer = curl.output().expect("curl is needed (Debian: apt-get install curl)");
        assert!(answer.status.success(), "{answer:?}");
        String::from_utf8(answer.stdout).unwrap()
    }

    /// Waits until the status has a finding with this code.
    pub fn wait_for_finding(&self, code: &str) -> Value {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let status = self.json(&["status"]);
            let mut findings = status["findings"].as_array().unwrap().iter();
            if let Some(finding) = findings.find(|finding| finding["code"] == code) {
                return finding.clone();
            }
            assert!(Instant::now() < deadline, "no {code} in {status}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn copy_into(from: &Path, to: &Path) {
    let from = format!("{}/.", from.display());
    let status = Command::new("cp").args(["-a", "--", &from]).arg(to).status().unwrap();
    assert!(status.success());
}

/// What a command answered.
#[derive(Debug)]
pub struct Answer {
    /// Its arguments.
    pub line: String,
    /// Its exit code.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained.
    pub stderr: String,
}

impl Answer {
    /// Requires an exit code.
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(
            self.code, code,
            "coffer {}\nstdout: {}\nstderr: {}",
            self.line, self.stdout, self.stderr
        );
        self
    }

    /// Whether its error has a cure. That of arguments which are not understood is the usage below it.
    pub fn says_what_to_do(&self) -> bool {
        let by_usage = self.stderr.contains("try '--help'");
        by_usage || ["\n  do:  ", "\"cure\":"].iter().any(|cure| self.stderr.contains(cure))
    }
}

/// A running node; asked to end when it is dropped.
pub struct Node<'a> {
    place: &'a Place,
    child: Option<Child>,
}

impl Node<'_> {
    fn wait_until_it_answers(&mut self) {
        let answers = self.place.wait_for_socket();
        let ended = self.child.as_mut().unwrap().try_wait().unwrap();
        assert!(answers && ended.is_none(), "no node ({ended:?}):\n{}", self.place.log());
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Ends it as an administrator does, and requires that it ends well.
    pub fn stop(mut self) {
        let mut child = self.child.take().unwrap();
        signal(&child, Signal::SIGTERM);
        let status = child.wait().unwrap();
        assert!(status.success(), "the node ended with {status}:\n{}", self.place.log());
    }

    /// Waits until it ends by itself, and gives its exit code.
    pub fn ended(mut self) -> i32 {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                self.child = None;
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < deadline, "the node goes on:\n{}", self.place.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it as a power cut does.
    pub fn kill(mut self) {
        let mut child = self.child.take().unwrap();
        signal(&child, Signal::SIGKILL);
        child.wait().unwrap();
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            signal(&child, Signal::SIGKILL);
            let _ = child.wait();
        }
    }
}

fn signal(child: &Child, signal: Signal) {
    let _ = kill(Pid::from_raw(child.id().cast_signed()), signal);
}

/// The built program, beside this test's own.
///
/// # Panics
/// If it is not built.
pub fn program() -> &'static Path {
    static PROGRAM: std::sync::LazyLock<PathBuf> = std::sync::LazyLock::new(|| {
        let test = std::env::current_exe().unwrap();
        let path = test.parent().unwrap().parent().unwrap().join("coffer");
        assert!(path.is_file(), "{} is missing: cargo build --package coffer", path.display());
        path
    });
    &PROGRAM
}

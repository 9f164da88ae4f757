//! A node of the release build, and the commands of its command line.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::measure;
use crate::process::{self, Background};

/// Where a node lives, over its restarts.
pub(super) struct Place {
    program: PathBuf,
    folder: PathBuf,
    /// Not below `folder`, whose path may be too long for a socket (108 bytes, unix(7)).
    sockets: tempfile::TempDir,
}

impl Place {
    /// An empty one.
    pub(super) fn new(program: &Path, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let config = "log_format = \"json\"\n";
        fs::write(folder.join("config.toml"), config)?;
        let sockets = tempfile::Builder::new().prefix("coffer-bench-").tempdir()?;
        Ok(Self { program: program.to_owned(), folder: folder.to_owned(), sockets })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn socket(&self) -> PathBuf {
        self.sockets.path().join("node")
    }

    pub(super) fn state_dir(&self) -> PathBuf {
        self.path("state")
    }

    /// A command that asks the node.
    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).env("COFFER_SOCKET", self.socket());
        command
    }

    /// A request to the node that must succeed. `null` is no body.
    pub(super) fn ask(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = exchange(&self.socket(), method, path, &body)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("half an answer")?;
        ensure!(head.starts_with(GOOD), "{method} {path}: {answer}");
        Ok(serde_json::from_str(body)?)
    }

    /// Runs a command that must succeed. What it says is shown only if it does not.
    pub(super) fn coffer(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command(arguments).output()?;
        ensure!(
            output.status.success(),
            "{}: {}: {}",
            process::show(&self.command(arguments)),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }
}

/// A running node; it ends with this value.
pub(super) struct Node {
    serve: Background,
    log: PathBuf,
    /// From before the process was started to the first answer.
    pub(super) answered_after: Duration,
}

impl Node {
    /// Starts it and waits until it answers.
    pub(super) fn start(place: &Place) -> Result<Self> {
        const PATIENCE: Duration = Duration::from_secs(60);
        let log = place.path("node.log");
        let mut command = place.command(&["serve"]);
        command.arg("--state-dir").arg(place.state_dir());
        command.arg("--config").arg(place.path("config.toml"));
        command.env("RUST_LOG", "info");
        let began = Instant::now();
        let mut serve = Background::start(&mut command, &log)?;
        while !answers(&place.socket()) {
            ensure!(serve.is_running().context("coffer serve")?, "coffer serve has ended");
            ensure!(began.elapsed() < PATIENCE, "coffer serve does not answer");
            process::pause_for(Duration::from_millis(1))?;
        }
        Ok(Self { serve, log, answered_after: began.elapsed() })
    }

    pub(super) fn id(&self) -> u32 {
        self.serve.id()
    }

    /// What the node's log says of the move of keys that this job did: how long keys took, and copies.
    pub(super) fn move_times(&mut self, job: &str) -> Result<(Duration, Duration)> {
        const PATIENCE: Duration = Duration::from_secs(10);
        let began = Instant::now();
        loop {
            let log = fs::read_to_string(&self.log)?;
            let mut moves = lines(&log, "the move of keys ended");
            // Which job it was stands in the span.
            if let Some(line) = moves.find(|line| line["span"]["job"] == job) {
                let time = |name| Ok(Duration::from_millis(number(&line["fields"], name)?));
                return time("keys_ms").and_then(|keys| Ok((keys, time("copies_ms")?)));
            }
            ensure!(began.elapsed() < PATIENCE, "the node's log does not say how job {job} ended");
            process::pause()?;
        }
    }

    /// Waits until it has nothing more to do.
    pub(super) fn wait_until_idle(&self) -> Result<()> {
        const LOOK_EVERY: Duration = Duration::from_millis(500);
        const PATIENCE: Duration = Duration::from_secs(120);
        let began = Instant::now();
        let mut before = measure::processor_time(self.id())?;
        loop {
            process::pause_for(LOOK_EVERY)?;
            let now = measure::processor_time(self.id())?;
            if now - before < LOOK_EVERY / 20 {
                return Ok(());
            }
            ensure!(began.elapsed() < PATIENCE, "coffer serve does not come to rest");
            before = now;
        }
    }

    /// Waits until it has unlocked so many filesystems, and answers how long the KMS took for that.
    pub(super) fn wait_for_unlock(&mut self, filesystems: u64) -> Result<Duration> {
        const PATIENCE: Duration = Duration::from_secs(120);
        let began = Instant::now();
        loop {
            let (opened, took) = unlocked(&fs::read_to_string(&self.log)?)?;
            if opened >= filesystems {
                return Ok(took);
            }
            ensure!(self.serve.is_running().context("coffer serve")?, "coffer serve has ended");
            ensure!(
                began.elapsed() < PATIENCE,
                "coffer serve opened {opened} of {filesystems} filesystems"
            );
            process::pause()?;
        }
    }
}

const GOOD: &str = "HTTP/1.1 200";

/// Nothing is spawned for it, so that starts can be timed.
fn answers(socket: &Path) -> bool {
    exchange(socket, "GET", "/v1/status", "").is_ok_and(|answer| answer.starts_with(GOOD))
}

/// One request over the socket, and all that is answered.
fn exchange(socket: &Path, method: &str, path: &str, body: &str) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: coffer\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// How many filesystems a node's log says it opened, and the KMS's part of that time: one line of JSON
/// for each round.
fn unlocked(log: &str) -> Result<(u64, Duration)> {
    let (mut opened, mut milliseconds) = (0, 0);
    for line in lines(log, "unwrapped keys") {
        opened += number(&line["fields"], "opened")?;
        milliseconds += number(&line["fields"], "kms_ms")?;
    }
    Ok((opened, Duration::from_millis(milliseconds)))
}

/// The fields of each line of a log that says this. The last line may not be whole yet.
fn lines(log: &str, message: &str) -> impl Iterator<Item = Value> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(move |line| line["fields"]["message"] == message)
}

/// A figure of a log line. One of 128 bits stands there as text.
fn number(fields: &Value, name: &str) -> Result<u64> {
    let field = &fields[name];
    let number = field.as_u64().or_else(|| field.as_str()?.parse().ok());
    number.with_context(|| format!("the node's log has no number `{name}` in {fields}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unlock_rounds_are_read_from_the_log() {
        let log = r#"{"fields":{"message":"the node is up"}}
            {"fields":{"message":"unwrapped keys","keys":3,"opened":2,"kms_ms":"7"}}
            {"fields":{"message":"unwrapped keys","keys":1,"opened":1,"kms_ms":4}}
            {"fields":{"message":"unlocked fi"#;
        assert_eq!(unlocked(log).unwrap(), (3, Duration::from_millis(11)));

        let log = r#"{"fields":{"message":"unwrapped keys","opened":2}}"#;
        assert!(unlocked(log).is_err(), "a time that is missing is no time");
    }
}

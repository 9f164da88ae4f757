//! The web console over many filesystems: its first page, its list, and those who follow its events.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::fleet::Fleet;
use super::kms::Kms;
use super::measure::{self, Peaks};
use super::node::{Node, Place};
use super::report::{Bar, Bound, Row, Section};
use super::{Bench, progress};
use crate::process;

/// For a page with all that it loads, and for the list.
const WITHIN: Duration = Duration::from_millis(100);
/// What the first page weighs at most, with all that it loads.
const FIRST_PAGE: f64 = 100_000.0;
/// Those who follow events at once, and what they may cost in all.
const FOLLOWERS: usize = 200;
const FOLLOWERS_COST: f64 = 50.0;

pub(super) fn run(bench: &Bench<'_>) -> Result<Section> {
    let (count, rounds) = if bench.quick { (1_000, 3) } else { (10_000, 50) };
    progress(&format!("console: preparing {count} filesystems"));
    let kms = Kms::embedded(&bench.program, bench.folder)?;
    let Fleet { place, .. } = Fleet::make(bench, &kms, &kms.url, count)?;
    let mut node = Node::start(&place)?;
    node.wait_for_unlock(count as u64)?;
    node.wait_until_idle()?;
    let session = Session::open(&place)?;

    progress(&format!("console: {rounds} times each page"));
    let mut bytes = 0;
    let first = times(rounds, || {
        bytes = session.load("/")?;
        Ok(())
    })?;
    let in_the_middle = format!("/filesystems?after=fs-{:05}", count / 2);
    let mut rows = vec![row("first page, with style, script and icon", first)];
    for (name, path) in [
        ("list, first of its pages", "/filesystems"),
        ("list, a page in its middle", in_the_middle.as_str()),
        ("list, searched for one", "/filesystems?search=00999"),
        ("list, searched for a state", "/filesystems?state=locked"),
    ] {
        rows.push(row(name, times(rounds, || session.page(path).map(drop))?));
    }
    ensure!(session.page("/filesystems")?.matches("<tr>").count() <= 101, "the list has no pages");

    progress(&format!("console: {FOLLOWERS} follow its events"));
    let memory = || measure::memory_now(node.id()).context("coffer serve has ended");
    let before = memory()?;
    let followers = follow(&session, &place)?;
    let cost = memory()?.saturating_sub(before) as f64 / f64::from(1 << 20);
    drop(followers);
    let mut peaks = Peaks::new();
    if let Some(bytes) = measure::peak_memory(node.id()) {
        measure::raise(&mut peaks, "coffer serve", bytes);
    }
    drop(node);
    fs::remove_dir_all(place.path(""))?;

    let slowest = |rows: &[Row]| rows.iter().map(Row::median).fold(0.0, f64::max) * 1000.0;
    let bar = |what: &str, value, unit, most, limit: &str| Bar {
        what: what.to_owned(),
        value,
        unit,
        bound: Bound::AtMost(most),
        limit: limit.to_owned(),
    };
    let within = WITHIN.as_millis() as f64;
    let bars = vec![
        bar("first page", slowest(&rows[..1]), "ms", within, "Its figures count all filesystems"),
        bar(
            "first page",
            bytes as f64 / 1000.0,
            "kB",
            FIRST_PAGE / 1000.0,
            "Nothing is compressed",
        ),
        bar(
            "slowest page of the list",
            slowest(&rows[1..]),
            "ms",
            within,
            "A search looks at each name",
        ),
        bar("cost of those who follow events", cost, "MiB", FOLLOWERS_COST, "A connection each"),
    ];
    let notes = vec![
        "each request on a connection of its own, over loopback, without TLS".to_owned(),
        format!(
            "{FOLLOWERS} followers, by the rise of the node's resident memory, with a change told to each"
        ),
    ];
    let title = format!("console: {count} filesystems, rounds: {rounds}");
    Ok(Section { title, rows, bars, notes, peaks })
}

fn row(name: &str, seconds: Vec<f64>) -> Row {
    Row { name: name.to_owned(), seconds, detail: String::new() }
}

fn times(rounds: u32, mut work: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    // Once for nothing: caches are warm when somebody works with it.
    work()?;
    let time = |_| {
        let began = Instant::now();
        work()?;
        Ok(began.elapsed().as_secs_f64())
    };
    (0..rounds).map(time).collect()
}

/// Has all of them hear of a change. They go with what is answered.
fn follow(session: &Session, place: &Place) -> Result<Vec<TcpStream>> {
    let mut followers = Vec::new();
    for _ in 0..FOLLOWERS {
        followers.push(session.send("GET", "/v1/events", "keep-alive", "")?);
    }
    hear(&mut followers)?;
    place.ask("POST", "/v1/filesystems", &json!({ "name": "one-more" }))?;
    hear(&mut followers)?;
    Ok(followers)
}

fn hear(followers: &mut [TcpStream]) -> Result<()> {
    for follower in followers {
        let mut told = String::new();
        while !told.contains("event: changed") {
            let mut piece = [0; 4096];
            let length = follower.read(&mut piece).context("no event comes")?;
            ensure!(length > 0, "the events end: {told}");
            told.push_str(&String::from_utf8_lossy(&piece[..length]));
        }
        process::pause_for(Duration::ZERO)?;
    }
    Ok(())
}

/// A session of the console, without a browser.
struct Session {
    host: String,
    cookie: String,
}

impl Session {
    fn open(place: &Place) -> Result<Self> {
        let link: Value = place.ask("POST", "/v1/console/links", &json!({}))?;
        let link = link["url"].as_str().context("no link")?;
        let (origin, code) = link.split_once("/login#").context("a link without a code")?;
        let host = origin.trim_start_matches("http://").to_owned();
        let outside = Self { host, cookie: String::new() };
        let entered = outside.ask("POST", "/login", &format!("code={code}"))?;
        let cookie = entered.lines().find_map(|line| line.strip_prefix("set-cookie: "));
        let cookie = cookie.and_then(|cookie| cookie.split(';').next());
        let cookie = cookie.with_context(|| format!("no session: {entered}"))?.to_owned();
        Ok(Self { cookie, ..outside })
    }

    /// Loads a page with all that it needs. Answers how many bytes that are.
    fn load(&self, path: &str) -> Result<usize> {
        let page = self.page(path)?;
        let mut bytes = page.len();
        for piece in page.split("=\"/assets/").skip(1) {
            let asset = piece.split('"').next().unwrap_or_default();
            bytes += self.page(&format!("/assets/{asset}"))?.len();
        }
        Ok(bytes)
    }

    fn page(&self, path: &str) -> Result<String> {
        let page = self.ask("GET", path, "")?;
        ensure!(page.starts_with("HTTP/1.1 200"), "{path}: {page}");
        Ok(page)
    }

    fn ask(&self, method: &str, path: &str, form: &str) -> Result<String> {
        let mut answer = String::new();
        self.send(method, path, "close", form)?.read_to_string(&mut answer)?;
        Ok(answer)
    }

    fn send(&self, method: &str, path: &str, connection: &str, form: &str) -> Result<TcpStream> {
        let Self { host, cookie } = self;
        let length = form.len();
        let mut stream = TcpStream::connect(host)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nCookie: {cookie}\r\n\
             Connection: {connection}\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {length}\r\n\r\n{form}"
        )?;
        Ok(stream)
    }
}

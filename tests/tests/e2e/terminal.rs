//! What a person at a terminal sees and is asked, and a pipe is not.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use coffer_tests::node::{Place, program};
use testkit::tree;

#[test]
fn progress_is_shown_on_a_terminal_only() {
    const TOTAL: &str = "200.00 MiB";
    let place = Place::new();
    let source = place.path("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("large"), tree::noise(3, 200 << 20)).unwrap();
    let _node = place.start();
    for fs in ["home", "other"] {
        place.ok(&["fs", "create", fs, "--allow-no-kms"]);
    }

    let (shown, code) = at_a_terminal(&place, &["fs", "import", "home", text(&source)], "");
    assert_eq!(code, 0, "{shown}");
    let (bar, answer) = shown.rsplit_once(CLEARED).expect("a bar that is cleared in the end");
    let tells_all = |frame: &str| {
        let measures = ["import ", &format!(" MiB/{TOTAL} "), "iB/s ", "s left"];
        measures.iter().all(|measure| frame.contains(measure)) && frame.contains('█')
    };
    assert!(bar.split(CLEARED).any(tells_all), "no bar with bytes, rate and time left: {bar:?}");
    assert!(!bar.contains(" 0 B/s 0s left"), "time left told before there was a rate: {bar:?}");
    assert_eq!(answer.trim(), format!("imported into home: 2 items, {TOTAL}"));

    let piped = place.coffer(&["fs", "import", "other", text(&source)]).expect(0);
    assert_eq!(piped.stdout, format!("imported into other: 2 items, {TOTAL}\n"));
    assert_eq!(piped.stderr, "");
}

#[test]
fn what_destroys_asks_for_the_word_at_a_terminal_only() {
    let place = Place::new();
    let _node = place.start();
    place.ok(&["fs", "create", "home", "--allow-no-kms"]);
    let delete = ["fs", "delete", "home"];
    assert!(place.fails(2, &delete).contains("--yes"));
    let (asked, code) = at_a_terminal(&place, &delete, "yes\n");
    assert!(asked.contains("Type home to go on") && asked.contains("was not confirmed"), "{asked}");
    assert_eq!(code, 1, "{asked}");
    place.ok(&["fs", "show", "home"]);
    let (asked, code) = at_a_terminal(&place, &delete, "home\n");
    assert!(asked.contains("Type home to go on") && asked.contains("home is deleted"), "{asked}");
    assert_eq!(code, 0, "{asked}");
    place.fails(5, &["fs", "show", "home"]);
}

/// What a terminal is sent before the bar is drawn again.
const CLEARED: &str = "\r\u{1b}[2K";

/// Runs a command of the program on a terminal of its own with script(1), which every Linux has; gives what the terminal
/// showed, and the exit code.
fn at_a_terminal(place: &Place, args: &[&str], typed: &str) -> (String, i32) {
    let line = format!("stty cols 120; \"$COFFER\" {}", args.join(" "));
    let mut script = Command::new("script")
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .env("COFFER", program())
        .env("COFFER_SOCKET", place.socket())
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    script.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
    let Output { status, stdout, .. } = script.wait_with_output().unwrap();
    (String::from_utf8(stdout).unwrap(), status.code().unwrap_or(-1))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

//! chromedriver, once for this process, and browsers of it.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{LazyLock, mpsc};

use thirtyfour::prelude::*;
use thirtyfour::{ChromeCapabilities, LoggingPrefsLogLevel};
use tokio::runtime::Runtime;

/// Keeps the requests to chromedriver going.
pub(crate) static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
});

/// Where chromedriver answers.
static DRIVER: LazyLock<String> = LazyLock::new(|| {
    let program = installed("chromedriver");
    let (tell, told) = mpsc::channel();
    // The kernel ends it with the thread that started it, so that one stays (PR_SET_PDEATHSIG, prctl(2)).
    std::thread::spawn(move || {
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(program)
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("setpriv is needed (Debian: apt-get install util-linux)");
        for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
            if let Some((_, port)) = line.split_once("started successfully on port ") {
                let _ = tell.send(format!("http://127.0.0.1:{}", port.trim_end_matches('.')));
            }
        }
        let _ = child.wait();
    });
    told.recv().expect("chromedriver tells no port")
});

/// A browser with this profile. It ends when chromedriver does, at the latest.
pub(crate) fn chromium(profile: &Path) -> WebDriver {
    let mut wanted = ChromeCapabilities::new();
    wanted.set_binary(installed("chromium").to_str().unwrap()).unwrap();
    wanted.set_browser_log_level(LoggingPrefsLogLevel::All).unwrap();
    // The certificates of these tests are signed by nobody.
    wanted.accept_insecure_certs(true).unwrap();
    let profile = format!("--user-data-dir={}", profile.display());
    // Over a pipe, so that nobody's death leaves it behind.
    for arg in ["--headless=new", "--remote-debugging-pipe", "--window-size=1280,900", &profile] {
        wanted.add_arg(arg).unwrap();
    }
    if nix::unistd::geteuid().is_root() {
        wanted.add_arg("--no-sandbox").unwrap();
    }
    RUNTIME.block_on(WebDriver::new(&*DRIVER, wanted)).expect("Chromium does not start")
}

fn installed(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} is missing: apt-get install chromium chromium-driver"))
}

//! The configuration file, and what goes before and after it.
//!
//! There is no file in a fixed place: who wants one names it with `--config`. So a node and its command line agree on
//! their defaults without reading anything.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use admin_api::{Exit, Problem};
use daemon::{Listen, Tls};
use serde::Deserialize;

/// Where a node lives and how it speaks, all decided.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) state_dir: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) log_format: LogFormat,
    /// For one request to the KMS, with all its tries.
    pub(crate) kms_deadline: Duration,
    /// Where the web console is served from the start.
    pub(crate) console: Option<Listen>,
}

/// How the log on stderr is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LogFormat {
    #[default]
    Text,
    Json,
}

/// The file, in TOML.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    state_dir: Option<PathBuf>,
    socket: Option<PathBuf>,
    #[serde(default)]
    log_format: LogFormat,
    kms_deadline_seconds: Option<u64>,
    listen: Option<SocketAddr>,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    #[serde(default)]
    console_hosts: Vec<String>,
}

/// In seconds. Longer ones would add up to more than a command waits for its node.
const KMS_DEADLINES: RangeInclusive<u64> = 1..=60;
const KMS_DEADLINE: u64 = 30;

impl Settings {
    /// Arguments go before the file, and that before the defaults.
    ///
    /// # Errors
    /// The file can't be read, or says what nobody knows.
    pub(crate) fn of(arguments: cli::Serve) -> Result<Self, Problem> {
        let file = match &arguments.config {
            None => File::default(),
            Some(path) => read(path)?,
        };
        let state_dir = arguments.state_dir.or(file.state_dir);
        let state_dir = state_dir.unwrap_or_else(cli::default_state_dir);
        // Backing directories are recorded by absolute paths, and the node may be started from anywhere.
        let state_dir = cli::absolute(&state_dir)?;
        let socket = match arguments.socket.or(file.socket) {
            Some(socket) => cli::absolute(&socket)?,
            None => cli::socket_in(&state_dir),
        };
        let kms_deadline = Duration::from_secs(file.kms_deadline_seconds.unwrap_or(KMS_DEADLINE));
        let files = (arguments.tls_cert.or(file.tls_cert), arguments.tls_key.or(file.tls_key));
        let hosts = match arguments.console_hosts {
            hosts if hosts.is_empty() => file.console_hosts,
            hosts => hosts,
        };
        let console = console(arguments.listen.or(file.listen), files, hosts)?;
        Ok(Self { state_dir, socket, log_format: file.log_format, kms_deadline, console })
    }
}

/// Where the console is served; what belongs to that is nothing by itself.
fn console(
    address: Option<SocketAddr>,
    files: (Option<PathBuf>, Option<PathBuf>),
    hosts: Vec<String>,
) -> Result<Option<Listen>, Problem> {
    let refused = |why: &str, cure: &str| {
        Err(Problem::new(Exit::Usage, "config", "the console can't be served", why).cure(cure))
    };
    let tls = match files {
        (Some(certificate), Some(key)) => Some(Tls { certificate, key }),
        (None, None) => None,
        _ => {
            return refused(
                "a certificate and its key belong together",
                "give both, --tls-cert and --tls-key",
            );
        }
    };
    match address {
        Some(address) => Ok(Some(Listen { address, tls, hosts })),
        None if tls.is_none() && hosts.is_empty() => Ok(None),
        None => refused(
            "a certificate and names of the host are for an address",
            "give it with --listen ADDR",
        ),
    }
}

fn read(path: &Path) -> Result<File, Problem> {
    const LIMIT: u64 = 64 * 1024;
    let problem = |why: String| {
        let title = format!("the configuration file {} can't be used", path.display());
        Problem::new(Exit::Usage, "config", title, why).cure(
            "its settings are state_dir, socket, log_format (\"text\" or \"json\"), kms_deadline_seconds (1 to 60), listen, tls_cert, tls_key and console_hosts, in TOML",
        )
    };
    let text = cli::read_text(path, LIMIT).map_err(|e| problem(e.to_string()))?;
    let file: File = toml::from_str(&text).map_err(|e| problem(e.to_string()))?;
    match file.kms_deadline_seconds {
        Some(seconds) if !KMS_DEADLINES.contains(&seconds) => {
            Err(problem(format!("kms_deadline_seconds is {seconds}")))
        }
        _ => Ok(file),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn of(text: &str, state_dir: Option<&str>, socket: Option<&str>) -> Result<Settings, Problem> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("coffer.toml");
        fs::write(&path, text).unwrap();
        Settings::of(cli::Serve {
            config: Some(path),
            state_dir: state_dir.map(PathBuf::from),
            socket: socket.map(PathBuf::from),
            ..cli::Serve::default()
        })
    }

    #[test]
    fn the_console_has_an_address_and_what_belongs_to_it() {
        let console = |text| of(text, Some("/c"), None).map(|settings| settings.console);
        assert_eq!(console("").unwrap(), None);
        let all = "listen = '[::1]:9'\ntls_cert = '/a'\ntls_key = '/b'\nconsole_hosts = ['h']";
        let Listen { address, tls, hosts } = console(all).unwrap().unwrap();
        assert_eq!((address.to_string(), hosts), ("[::1]:9".to_owned(), vec!["h".to_owned()]));
        assert_eq!(tls.map(|tls| tls.key), Some("/b".into()));
        for bad in ["tls_cert = '/a'", "console_hosts = ['h']", "listen = 'h:9'"] {
            assert_eq!(console(bad).unwrap_err().exit, Exit::Usage, "{bad}");
        }
    }

    #[test]
    fn arguments_go_before_the_file() {
        let text = "state_dir = '/a'\nsocket = '/b'\nlog_format = 'json'\nkms_deadline_seconds = 5";
        let all = of(text, None, None).unwrap();
        assert_eq!((all.state_dir, all.socket), ("/a".into(), "/b".into()));
        assert_eq!(all.log_format, LogFormat::Json);
        assert_eq!(all.kms_deadline, Duration::from_secs(5));
        let some = of(text, Some("/c"), Some("/d")).unwrap();
        assert_eq!((some.state_dir, some.socket), ("/c".into(), "/d".into()));
    }

    #[test]
    fn the_socket_lies_in_the_state_directory_unless_it_is_told_otherwise() {
        assert_eq!(of("", Some("/c"), None).unwrap().socket, cli::socket_in(Path::new("/c")));
    }

    #[test]
    fn a_setting_that_nobody_knows_is_refused() {
        for bad in
            ["state_dri = '/a'", "log_format = 'xml'", "state_dir =", "kms_deadline_seconds = 0"]
        {
            assert_eq!(of(bad, None, None).unwrap_err().exit, Exit::Usage, "{bad}");
        }
    }
}

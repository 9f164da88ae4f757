//! The admin socket: only its owner and root get through.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use admin_api::{Exit, Problem};
use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use rustix::process::geteuid;
use tokio::net::UnixListener;

/// The socket's file, removed when it is dropped.
#[derive(Debug)]
pub(crate) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Listens at `path` with mode 0600. A socket file that nobody listens on, left by a node that died, is replaced.
///
/// The umask of [`crate::harden`] makes the file private from its first moment.
pub(crate) fn listen(path: &Path) -> Result<(UnixListener, SocketFile), Problem> {
    check_directory(path)?;
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(unusable(path, error.to_string())),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(unusable(path, "something that is no socket has its name".to_owned()));
        }
        Ok(_) => match UnixStream::connect(path) {
            Ok(_) => {
                return Err(Problem::new(
                    Exit::State,
                    "socket-in-use",
                    format!("the node can't listen on {}", path.display()),
                    "another node answers there",
                )
                .cure("stop it first, or give this one another place with --socket PATH"));
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(|e| unusable(path, e.to_string()))?;
            }
            Err(error) => return Err(unusable(path, error.to_string())),
        },
    }
    let listener = UnixListener::bind(path).map_err(|e| unusable(path, e.to_string()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .map_err(|e| unusable(path, e.to_string()))?;
    Ok((listener, SocketFile(path.to_owned())))
}

/// In a directory where others may write, they could put a socket of their own in the place of ours.
fn check_directory(path: &Path) -> Result<(), Problem> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let found = fs::metadata(directory)
        .map_err(|e| unusable(path, format!("{}: {e}", directory.display())))?;
    let ours = found.uid() == geteuid().as_raw() || found.uid() == 0;
    let (others_write, sticky) = (found.mode() & 0o022 != 0, found.mode() & 0o1000 != 0);
    if ours && (!others_write || sticky) {
        return Ok(());
    }
    Err(unusable(path, format!("others may put files into {}", directory.display())))
}

fn unusable(path: &Path, why: String) -> Problem {
    let title = format!("the node can't listen on {}", path.display());
    Problem::new(Exit::State, "socket-unusable", title, why)
        .cure("give a place in a directory of your own with --socket PATH")
}

/// Who is at the other end, as the kernel tells it (`SO_PEERCRED`).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    uid: Option<u32>,
    pid: Option<i32>,
}

impl Peer {
    /// Whether it may ask for anything: the node's own user, and root.
    pub(crate) fn is_allowed(self) -> bool {
        self.uid.is_some_and(|uid| uid == 0 || uid == geteuid().as_raw())
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.uid, self.pid) {
            (Some(uid), Some(pid)) => write!(f, "uid {uid}, process {pid}"),
            (Some(uid), None) => write!(f, "uid {uid}"),
            (None, _) => f.write_str("somebody unknown"),
        }
    }
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let credentials = stream.io().peer_cred().ok();
        Self { uid: credentials.map(|c| c.uid()), pid: credentials.and_then(|c| c.pid()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("coffer.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let (_listener, file) = listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let problem = listen(&path).unwrap_err();
        assert_eq!((problem.exit, problem.code.as_str()), (Exit::State, "socket-in-use"));
        drop(file);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_is_no_socket_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("coffer.sock");
        fs::write(&path, "precious").unwrap();
        assert_eq!(listen(&path).unwrap_err().code, "socket-unusable");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn a_directory_that_others_may_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("coffer.sock");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(listen(&path).unwrap_err().code, "socket-unusable");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        assert!(listen(&path).is_ok());
    }

    #[test]
    fn only_the_owner_and_root_are_let_in() {
        let me = geteuid().as_raw();
        let peer = |uid| Peer { uid, pid: None };
        assert!(peer(Some(0)).is_allowed() && peer(Some(me)).is_allowed());
        assert!(!peer(Some(me + 1)).is_allowed() && !peer(None).is_allowed());
    }
}

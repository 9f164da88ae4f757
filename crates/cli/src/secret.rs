//! Reads secrets: a token from an argument, a file or stdin; a secret id; a private key.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use admin_api::{BytePath, Exit, Problem, Token};
use zeroize::Zeroizing;

use crate::console::Console;
use crate::files::absolute;
use crate::grammar::SetVault;

/// Longest token that is read. Vault's service tokens have about a hundred bytes, batch tokens a few hundred.
const LIMIT: u64 = 16 * 1024;

/// Longest private key that is read, in PEM. One of RSA with 16,384 bits has less than 13 KiB.
const KEY_LIMIT: u64 = 16 * 1024;

/// What the node is to show Vault.
#[derive(Debug, Default)]
pub(crate) struct Auth {
    pub(crate) token: Option<Token>,
    pub(crate) token_file: Option<BytePath>,
    pub(crate) secret_id: Option<Token>,
}

/// What the arguments name; the grammar sees to it that they name no more than one. With none the node keeps what it has.
pub(crate) fn auth(arguments: &mut SetVault, console: &mut Console<'_>) -> Result<Auth, Problem> {
    let mut auth = Auth::default();
    match (arguments.token.take(), &arguments.token_file, &arguments.secret_id_file) {
        (Some(token), ..) => auth.token = Some(token),
        (None, Some(path), _) if arguments.watch_token_file => {
            auth.token_file = Some(absolute(path)?.into());
        }
        (None, Some(path), _) => auth.token = Some(from_file(path, TOKEN)?),
        (None, None, Some(path)) => auth.secret_id = Some(from_file(path, SECRET_ID)?),
        (None, None, None) if arguments.token_stdin => {
            auth.token = Some(read(console.stdin(), "stdin", TOKEN)?);
        }
        (None, None, None) => {}
    }
    Ok(auth)
}

/// A private key in PEM.
pub(crate) fn key(path: &Path) -> Result<Token, Problem> {
    let name = path.display().to_string();
    let unreadable = |why: &str| {
        let what = format!("no private key can be read from {name}");
        Problem::new(Exit::Usage, "key-unreadable", what, why).cure(
            "name a file that holds the unencrypted private key of the client certificate in PEM",
        )
    };
    let mut file = File::open(path).map_err(|e| unreadable(&e.to_string()))?;
    let bytes = bytes(&mut file, KEY_LIMIT).map_err(|e| unreadable(&e.to_string()))?;
    let text = str::from_utf8(&bytes).map_err(|_| unreadable("it is not text"))?;
    if bytes.len() as u64 > KEY_LIMIT {
        return Err(unreadable("it is longer than any private key"));
    }
    if !text.contains("PRIVATE KEY-----") {
        return Err(unreadable("it holds none"));
    }
    Ok(Token::new(Zeroizing::new(text.to_owned())))
}

fn from_file(path: &Path, kind: Kind) -> Result<Token, Problem> {
    let name = path.display().to_string();
    let mut file = File::open(path).map_err(|e| kind.unreadable(&name, &e.to_string()))?;
    read(&mut file, &name, kind)
}

fn read(source: &mut dyn Read, name: &str, kind: Kind) -> Result<Token, Problem> {
    let unreadable = |why: &str| kind.unreadable(name, why);
    let bytes = bytes(source, LIMIT).map_err(|e| unreadable(&e.to_string()))?;
    if bytes.len() as u64 > LIMIT {
        return Err(unreadable(&format!("it is longer than any {}", kind.what)));
    }
    let text = str::from_utf8(&bytes).map_err(|_| unreadable("it is not text"))?.trim();
    if text.is_empty() || text.contains(char::is_whitespace) {
        let what = kind.what;
        return Err(unreadable(&format!(
            "a {what} is one word, and here is none or more than one"
        )));
    }
    Ok(Token::new(Zeroizing::new(text.to_owned())))
}

/// All of it, or one byte more than so many.
fn bytes(source: &mut dyn Read, limit: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    // Room for all of it from the start, so that growing leaves no copy behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(limit as usize + 1));
    source.take(limit + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What a secret of one word is called.
#[derive(Debug, Clone, Copy)]
struct Kind {
    what: &'static str,
    unreadable: &'static str,
    cure: &'static str,
}

const TOKEN: Kind = Kind {
    what: "token",
    unreadable: "token-unreadable",
    cure: "give a file, or a pipe with --token-stdin, that holds the token and nothing else",
};

const SECRET_ID: Kind = Kind {
    what: "secret id",
    unreadable: "secret-id-unreadable",
    cure: "give with --secret-id-file a file that holds the secret id and nothing else",
};

impl Kind {
    fn unreadable(self, name: &str, why: &str) -> Problem {
        let title = format!("no {} can be read from {name}", self.what);
        Problem::new(Exit::Usage, self.unreadable, title, why).cure(self.cure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_end_is_no_part_of_a_token() {
        assert_eq!(read(&mut &b"s.abc\r\n"[..], "stdin", TOKEN).unwrap().expose(), "s.abc");
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for bad in [&b""[..], b"\n", b"one two", b"\xff", &[b'a'; LIMIT as usize + 1]] {
            assert_eq!(read(&mut &*bad, "stdin", TOKEN).unwrap_err().exit, Exit::Usage);
        }
    }

    #[test]
    fn what_is_missing_is_called_by_its_name() {
        let missing = |kind| from_file(Path::new("/nowhere/at/all"), kind).unwrap_err();
        for (kind, what) in [(TOKEN, "no token can"), (SECRET_ID, "no secret id can")] {
            let problem = missing(kind);
            assert!(problem.title.starts_with(what), "{problem}");
        }
        let cure = missing(SECRET_ID).cure.unwrap();
        assert!(cure.contains("--secret-id-file") && !cure.contains("token"), "{cure}");
    }
}

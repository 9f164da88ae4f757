//! Reads a token from an argument, a file or stdin.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use admin_api::{Exit, Problem, Token};
use zeroize::Zeroizing;

use crate::console::Console;
use crate::grammar::SetVault;

/// Longest token that is read. Vault's service tokens have about a hundred bytes, batch tokens a few hundred.
const LIMIT: u64 = 16 * 1024;

/// The token that the arguments name; the grammar sees to it that they name no more than one.
pub(crate) fn token(arguments: &mut SetVault, console: &mut Console<'_>) -> Result<Token, Problem> {
    if let Some(token) = arguments.token.take() {
        return Ok(token);
    }
    match &arguments.token_file {
        Some(path) => from_file(path),
        None if arguments.token_stdin => read(console.stdin(), "stdin"),
        None => {
            let why = "the token is missing";
            Err(Problem::new(Exit::Usage, "usage", "wrong usage of set-vault", why).cure(
                "give --token-file FILE or --token-stdin; or the token as the last argument, where the process list shows it",
            ))
        }
    }
}

fn from_file(path: &Path) -> Result<Token, Problem> {
    let name = path.display().to_string();
    let mut file = File::open(path).map_err(|e| unreadable(&name, &e.to_string()))?;
    read(&mut file, &name)
}

fn read(source: &mut dyn Read, name: &str) -> Result<Token, Problem> {
    // Room for all of it from the start, so that growing leaves no copy behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(LIMIT as usize + 1));
    source.take(LIMIT + 1).read_to_end(&mut bytes).map_err(|e| unreadable(name, &e.to_string()))?;
    if bytes.len() as u64 > LIMIT {
        return Err(unreadable(name, "it is longer than any token"));
    }
    let text = str::from_utf8(&bytes).map_err(|_| unreadable(name, "it is not text"))?.trim();
    if text.is_empty() || text.contains(char::is_whitespace) {
        return Err(unreadable(name, "a token is one word, and here is none or more than one"));
    }
    Ok(Token::new(Zeroizing::new(text.to_owned())))
}

fn unreadable(name: &str, why: &str) -> Problem {
    Problem::new(Exit::Usage, "token-unreadable", format!("no token can be read from {name}"), why)
        .cure("give a file, or a pipe with --token-stdin, that holds the token and nothing else")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_end_is_no_part_of_a_token() {
        assert_eq!(read(&mut &b"s.abc\r\n"[..], "stdin").unwrap().expose(), "s.abc");
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for bad in [&b""[..], b"\n", b"one two", b"\xff", &[b'a'; LIMIT as usize + 1]] {
            assert_eq!(read(&mut &*bad, "stdin").unwrap_err().exit, Exit::Usage);
        }
    }
}

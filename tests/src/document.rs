//! The commands of a document, typed as they stand there.
//!
//! A fenced block has one of these languages:
//!
//! | language | what it is |
//! |---|---|
//! | `sh` | commands; all of a document are one sitting of one shell, in their order. `# exit N` after a command is the code that it ends with; without it that is 0 |
//! | `text` | below an `sh` block: lines that it answers, in their order, among others; `…` stands for anything |
//! | `toml` | a file, if its first line is a comment with an absolute path |
//! | `usage` | what a command takes: `<a value>`, `[what can be left out]`, `one | another` |
//! | others, or none | not for typing |

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::node::{Place, program};

/// A document of the project.
#[derive(Debug)]
pub struct Document {
    name: &'static str,
    text: String,
}

/// A fenced block of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Block {
    /// The word after the fence.
    pub language: String,
    /// Its lines.
    pub lines: Vec<String>,
}

/// What is another in a test than on the machine that the document speaks of.
pub struct Differences<'a> {
    /// Where absolute paths and the home directory lie.
    pub place: &'a Place,
    /// The Vault that the document calls `https://vault.example:8200`.
    pub vault_url: &'a str,
    /// The file that it calls `vault`.
    pub vault_program: &'a Path,
    /// What the shell's environment has beyond that.
    pub environment: &'a [(&'a str, &'a str)],
}

/// The absolute paths of the documents; each lies in the test's own place.
const PATHS: [&str; 4] = ["/etc/coffer", "/run/coffer", "/srv/", "/var/lib/coffer"];
const VAULT: &str = "https://vault.example:8200";

impl Document {
    /// One whose text is commands, which somebody has from elsewhere.
    pub fn of_commands(name: &'static str, commands: &str) -> Self {
        Self { name, text: format!("```sh\n{commands}\n```\n") }
    }

    /// Reads `docs/….md`, or another file by its path from the project's root.
    pub fn read(name: &'static str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let text = fs::read_to_string(root.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        Self { name, text }
    }

    /// Its fenced blocks.
    ///
    /// # Panics
    /// At a block that is indented instead: nobody could tell what kind it is of.
    pub fn blocks(&self) -> Vec<Block> {
        let mut blocks = Vec::new();
        let mut open: Option<Block> = None;
        for line in self.text.lines() {
            match &mut open {
                None => {
                    if let Some(language) = line.strip_prefix("```") {
                        open = Some(Block { language: language.to_owned(), lines: Vec::new() });
                    }
                    let command = line.strip_prefix("    ").is_some_and(is_command);
                    assert!(!command, "{}: give this a fence: {line}", self.name);
                }
                Some(_) if line == "```" => blocks.extend(open.take()),
                Some(block) => block.lines.push(line.to_owned()),
            }
        }
        assert!(open.is_none(), "{}: a block without an end", self.name);
        blocks
    }

    /// The commands in its running text, between backticks.
    pub fn mentioned(&self) -> Vec<&str> {
        let mut fenced = false;
        let prose = self.text.lines().filter(|line| {
            fenced ^= line.starts_with("```");
            !fenced && !line.starts_with("```")
        });
        prose
            .flat_map(|line| line.split('`').skip(1).step_by(2))
            .filter(|span| is_command(span))
            .collect()
    }

    /// Types its commands, and holds what they answer against its text.
    ///
    /// # Panics
    /// At the first difference, with all that was said until then.
    pub fn type_it(&self, differences: &Differences<'_>) {
        let place = differences.place;
        let bin = place.path("bin");
        fs::create_dir(&bin).unwrap();
        std::os::unix::fs::symlink(differences.vault_program, bin.join("vault")).unwrap();
        // The program is built already.
        std::os::unix::fs::symlink("/bin/true", bin.join("cargo")).unwrap();
        for path in PATHS {
            fs::create_dir_all(place.path(path.trim_start_matches('/')).parent().unwrap()).unwrap();
        }

        let mut script = String::from(
            "set -euo pipefail\nexec 2>&1\ntrap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n",
        );
        let mut answers: Vec<(usize, Vec<String>)> = Vec::new();
        let mut typed = 0;
        for block in self.blocks() {
            let lines: Vec<String> = block.lines.iter().map(|l| differences.apply(l)).collect();
            match block.language.as_str() {
                "sh" => {
                    typed += 1;
                    script.push_str(&format!("echo; echo '{BLOCK}{typed}'\n"));
                    lines.iter().for_each(|line| script.push_str(&in_a_script(line)));
                }
                "text" => answers.push((typed, block.lines)),
                "toml" => {
                    let first = lines.first().and_then(|line| line.strip_prefix("# "));
                    let path = first.expect("a file's first line is its path");
                    fs::write(path, lines.join("\n")).unwrap();
                }
                _ => {}
            }
        }
        assert!(typed > 0, "{} has lost its commands", self.name);

        let ran = Command::new("bash")
            .args(["-c", &script])
            .current_dir(place.path(""))
            .env("PATH", path_with(&[&bin, program().parent().unwrap()]))
            .env("HOME", place.path(""))
            .envs(differences.environment.iter().copied())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ran.stdout);
        assert!(ran.status.success(), "{}: {}\n{script}\n{said}", self.name, ran.status);
        let of_blocks: Vec<&str> = said.split(BLOCK).collect();
        for (block, expected) in answers {
            let Some(missing) = first_missing(&expected, of_blocks[block]) else { continue };
            panic!("{} promises {missing:?}, but block {}", self.name, of_blocks[block]);
        }
    }
}

fn is_command(text: &str) -> bool {
    text.strip_prefix("coffer ")
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase()))
}

/// Stands before what each block says.
const BLOCK: &str = "== block ";

impl Differences<'_> {
    fn apply(&self, line: &str) -> String {
        let root = self.place.path("");
        let root = root.to_str().unwrap().trim_end_matches('/');
        let line = line.replace(VAULT, self.vault_url);
        PATHS.iter().fold(line, |line, path| line.replace(path, &format!("{root}{path}")))
    }
}

/// A line with what a person does unasked: look at how a command ended, and let a node come up before the next one.
fn in_a_script(line: &str) -> String {
    if let Some((command, code)) = line.split_once("# exit ") {
        return format!(
            "{command} && code=0 || code=$?\n[ $code = {code} ] || {{ echo \"ended with $code: {command}\"; exit 99; }}\n"
        );
    }
    if line.starts_with("coffer serve") && line.ends_with('&') {
        return format!("{line}\n{UNTIL_IT_ANSWERS}\n");
    }
    format!("{line}\n")
}

/// Deferred to the next command, as the socket may be named in between.
const UNTIL_IT_ANSWERS: &str = "coffer() { for _ in $(seq 200); do \
     command coffer status >/dev/null 2>&1 && break; sleep 0.05; done; unset -f coffer; coffer \"$@\"; }";

/// The first of these lines that is not among what was said, in their order; `…` in them stands for anything.
pub fn first_missing<'a>(expected: &'a [String], said: &str) -> Option<&'a str> {
    let mut lines = said.lines();
    expected
        .iter()
        .map(String::as_str)
        .find(|line| !lines.any(|said| is_like(said.trim(), line.trim())))
}

/// Whether a line is as the pattern says, in which `…` stands for anything.
fn is_like(line: &str, pattern: &str) -> bool {
    let pieces: Vec<&str> = pattern.split('…').map(str::trim).collect();
    let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else { return false };
    let mut rest = line;
    let in_order = pieces.iter().all(|piece| match rest.find(piece) {
        Some(at) => {
            rest = &rest[at + piece.len()..];
            true
        }
        None => false,
    });
    in_order && line.starts_with(first) && line.ends_with(last)
}

fn path_with(first: &[&Path]) -> std::ffi::OsString {
    let rest = std::env::var_os("PATH").unwrap_or_default();
    let first = first.iter().map(PathBuf::from);
    std::env::join_paths(first.chain(std::env::split_paths(&rest))).unwrap()
}

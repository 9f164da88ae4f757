//! Every command, option, help text and example.

use std::net::SocketAddr;
use std::path::PathBuf;

use admin_api::Token;
use clap::builder::TypedValueParser as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use zeroize::Zeroizing;

use crate::console::Output;

/// Filesystems encrypted at rest under keys that only your KMS can unwrap
#[derive(Debug, Parser)]
#[command(
    name = "coffer",
    version,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true,
    infer_long_args = false,
    after_help = "\
A first look, with the development KMS:
  coffer dev vault --root-token root &
  coffer serve &
  echo root > token
  coffer fs kms set-vault http://127.0.0.1:8200 coffer-key --token-file token
  coffer fs create home
  coffer fs import home ~/documents

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the KMS cannot be reached, 4 the KMS refused,
5 the state does not allow it, 6 data failed authentication, 7 no node answers, 8 partly done."
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Common options")]
pub(crate) struct Common {
    /// The node's admin socket [default: coffer.sock in the default state directory]
    #[arg(long, global = true, env = "COFFER_SOCKET", hide_env_values = true, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// How answers are written
    #[arg(long, global = true, value_enum, value_name = "FORMAT", default_value = "text")]
    output: Format,
    /// Short for --output json
    #[arg(long, global = true, conflicts_with = "output")]
    json: bool,
    /// Do what destroys without asking
    #[arg(long, short = 'y', global = true)]
    pub(crate) yes: bool,
}

impl Common {
    pub(crate) fn output(&self) -> Output {
        if self.json || matches!(self.output, Format::Json) { Output::Json } else { Output::Text }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// For programs
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the node
    Serve(Serve),
    /// Show whether all is well
    #[command(after_help = "Example:\n  coffer status --json")]
    Status,
    /// Long work: see it, stop it
    #[command(subcommand, after_help = "Example:\n  coffer job list")]
    Job(JobCommand),
    /// Filesystems and their KMS
    #[command(subcommand, after_help = "Examples:\n  coffer fs list\n  coffer fs kms")]
    Fs(FsCommand),
    /// The record of every use of a key and every request that changes something
    #[command(subcommand, after_help = "Example:\n  coffer audit verify")]
    Audit(AuditCommand),
    /// Open the web console: print a link that opens a session, once and within a minute
    #[command(after_help = "\
The node serves the console where --listen of coffer serve says. Without that it does so from now on, on
loopback and a free port.

Examples:
  coffer console
  coffer console --read-only
  coffer console sessions --end 3f2a91c0")]
    Console {
        /// For a session that may look and change nothing
        #[arg(long)]
        read_only: bool,
        #[command(subcommand)]
        command: Option<ConsoleCommand>,
    },
    /// Rebuild a lost or damaged key store from backing directories
    Recover(Recover),
    /// What helps development, and is not for production
    #[command(subcommand, after_help = "Example:\n  coffer dev vault")]
    Dev(DevCommand),
    /// Print a shell's completion script
    #[command(after_help = "Example:\n  coffer completions bash > /etc/bash_completion.d/coffer")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write the page of every command to a directory
    #[command(
        after_help = "Examples:\n  coffer man | man -l -\n  coffer man /usr/local/share/man/man1"
    )]
    Man {
        /// Where the pages of all commands go
        #[arg(value_name = "DIR")]
        directory: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConsoleCommand {
    /// Show the sessions that are open, or end them
    #[command(
        after_help = "Examples:\n  coffer console sessions\n  coffer console sessions --end-all"
    )]
    Sessions {
        /// End the session with this id
        #[arg(long, value_name = "ID", conflicts_with = "end_all")]
        end: Option<String>,
        /// End all of them, and links that were not used
        #[arg(long)]
        end_all: bool,
    },
}

/// Run the node
#[derive(Debug, Default, Args)]
#[command(after_help = "\
The node runs in the foreground, logs to stderr (RUST_LOG sets how much) and ends on SIGTERM or
SIGINT. What is given here goes before the configuration file.

Example:
  coffer serve --state-dir /var/lib/coffer")]
pub struct Serve {
    /// A configuration file (TOML: state_dir, socket, log_format, kms_deadline_seconds, listen, tls_cert, tls_key, console_hosts)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the key store, the audit log and backing directories lie
    /// [default: /var/lib/coffer as root, else ~/.local/state/coffer]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The admin socket: the common option --socket.
    #[arg(skip)]
    pub socket: Option<PathBuf>,
    /// Serve the web console there from the start; beyond loopback it takes --tls-cert and --tls-key
    /// [default: 127.0.0.1 and a free port, once coffer console asks for it]
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// The console's certificate (PEM), with those between it and its CA
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// A name by which browsers reach the console, beside its address; links have the first
    #[arg(long = "console-host", value_name = "HOST")]
    pub console_hosts: Vec<String>,
}

/// Rebuild a lost or damaged key store from backing directories
#[derive(Debug, Args)]
#[command(after_help = "\
Each backing directory holds its wrapped key and the KMS's address and key name. The rebuilt store
has no token: start the node and give one with `coffer fs kms set-vault`. A store that is still in
the state directory is set aside, not overwritten.

Example:
  coffer recover --from /srv/coffer/home --from /srv/coffer/projects")]
pub struct Recover {
    /// A backing directory, or a directory of backing directories
    #[arg(long, required = true, num_args = 1.., value_name = "DIR")]
    pub from: Vec<PathBuf>,
    /// A configuration file (TOML: state_dir, socket, log_format, kms_deadline_seconds, listen, tls_cert, tls_key, console_hosts)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the new key store goes [default: /var/lib/coffer as root, else ~/.local/state/coffer]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

/// Open every key in a copy of a key store: for a node that rehearses, not for people, so no command that help, completions
/// or manual pages show.
#[derive(Debug, Parser)]
#[command(name = RehearseStore::NAME)]
pub struct RehearseStore {
    /// The copy
    #[arg(long, value_name = "DIR")]
    pub store: PathBuf,
    /// The node's state directory, where local keys are
    #[arg(long, value_name = "DIR")]
    pub state_dir: PathBuf,
    /// How long one request to the KMS may take
    #[arg(long, value_name = "SECONDS")]
    pub kms_deadline_seconds: u64,
    /// How long all of it may take
    #[arg(long, value_name = "SECONDS")]
    pub within_seconds: u64,
}

impl RehearseStore {
    /// The first argument of a process that is to be this.
    pub const NAME: &str = "rehearse-store";
}

#[derive(Debug, Subcommand)]
pub(crate) enum DevCommand {
    /// Run a KMS that speaks the part of Vault's API that Coffer uses. Insecure: it keeps everything in memory
    Vault(DevVault),
}

/// Run a KMS that speaks the part of Vault's API that Coffer uses. Insecure: it keeps everything in memory
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  coffer dev vault --listen 127.0.0.1:8200 --root-token root\n  coffer dev vault --fault-seed 7"
)]
pub struct DevVault {
    /// Where it listens; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8200")]
    pub listen: SocketAddr,
    /// Listen where other machines reach it too: whoever does can take every key that it holds
    #[arg(long)]
    pub allow_remote: bool,
    /// The token that may do everything [default: a random one, printed]
    #[arg(long, value_name = "TOKEN", value_parser = token())]
    pub root_token: Option<Token>,
    /// Where its keys, tokens and policies outlive it, in the clear [default: nowhere]
    #[arg(long, value_name = "FILE")]
    pub state: Option<PathBuf>,
    /// A plan of faults in JSON: what goes wrong with requests, out of a seed [default: nothing]
    #[arg(long, value_name = "FILE")]
    pub faults: Option<PathBuf>,
    /// The seed of the faults, in place of the plan's; without a plan one request in five meets something that passes
    #[arg(long, value_name = "N")]
    pub fault_seed: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    /// List jobs, the newest first
    #[command(after_help = "Example:\n  coffer job list")]
    List,
    /// Show one job
    #[command(after_help = "Example:\n  coffer job show 6f1c2d3e-0a1b-4c5d-8e9f-001122334455")]
    Show {
        /// The job's id
        #[arg(value_parser = segment())]
        id: String,
    },
    /// Stop a job at its next checkpoint; the command that started it takes it up again
    #[command(after_help = "Example:\n  coffer job stop 6f1c2d3e-0a1b-4c5d-8e9f-001122334455")]
    Stop {
        /// The job's id
        #[arg(value_parser = segment())]
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Show the newest lines
    #[command(after_help = "\
Examples:
  coffer audit show --lines 20
  coffer audit show --action key. --about home")]
    Show(AuditShow),
    /// Follow the chain through all lines that are kept, and compare it with its head
    #[command(after_help = "Example:\n  coffer audit verify")]
    Verify,
}

#[derive(Debug, Args)]
pub(crate) struct AuditShow {
    /// How many lines
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) lines: u64,
    /// Only those of actions that begin so: admin. fs. key. kms. node.
    #[arg(long, value_name = "ACTION")]
    pub(crate) action: Option<String>,
    /// Only those whose subject has this in it as whole words (a filesystem, a path of the API), or of the key with this id, or that this request to the KMS did
    #[arg(long, value_name = "TEXT")]
    pub(crate) about: Option<String>,
    /// Only what failed or was refused
    #[arg(long)]
    pub(crate) failed: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum FsCommand {
    /// Make a filesystem with a key of its own, wrapped by the KMS
    #[command(after_help = "\
Examples:
  coffer fs create home
  coffer fs create projects --backing /mnt/nfs/projects
  coffer fs create tenant-a --kms-key tenant-a-key")]
    Create {
        /// Its name: 1 to 64 of A-Z a-z 0-9 . _ -, of which the first is a letter or a digit
        #[arg(value_parser = segment())]
        name: String,
        /// Every filesystem is encrypted; this changes nothing
        #[arg(long)]
        encrypted: bool,
        /// While no KMS is set: wrap the key with one that lies beside it on disk, so that whoever reads
        /// the disk reads the data
        #[arg(long)]
        allow_no_kms: bool,
        /// Where its ciphertext lies: a directory that is empty or does not exist [default: in the state directory]
        #[arg(long, value_name = "DIR")]
        backing: Option<PathBuf>,
        /// A master key of its own in the KMS that is set, whichever one is set for the others [default: that one]
        #[arg(long, value_name = "MASTER-KEY-NAME")]
        kms_key: Option<String>,
    },
    /// List filesystems
    #[command(after_help = "Example:\n  coffer fs list --json")]
    List,
    /// Show one filesystem
    #[command(after_help = "Example:\n  coffer fs show home")]
    Show(Name),
    /// Delete a filesystem: its data, its record, and the copies of its wrapped key here
    #[command(after_help = "Example:\n  coffer fs delete home --yes")]
    Delete {
        #[command(flatten)]
        name: Name,
        /// Remove the record alone; what lies in the backing directory stays, in reach or not
        #[arg(long)]
        forget: bool,
    },
    /// Close a filesystem and forget its key until it is unlocked
    #[command(after_help = "Example:\n  coffer fs lock home")]
    Lock {
        #[command(flatten)]
        name: Name,
        /// Stop the jobs that use it first
        #[arg(long)]
        force: bool,
    },
    /// Open a filesystem: the KMS unwraps its key
    #[command(after_help = "Example:\n  coffer fs unlock home")]
    Unlock(Name),
    /// Authenticate everything in a filesystem, and name what is damaged
    #[command(after_help = "Example:\n  coffer fs verify home --repair")]
    Verify {
        #[command(flatten)]
        name: Name,
        /// Set aside what cannot be read
        #[arg(long)]
        repair: bool,
    },
    /// Give a filesystem a new key and re-encrypt its data under that, in place
    #[command(after_help = "\
The filesystem stays in use meanwhile. A key that has lain under local wrapping (exposed) is one that
somebody may have: only this ends it. It takes a KMS that is set. The same command takes up a
re-encryption that was stopped.

Example:
  coffer fs rekey home")]
    Rekey(Name),
    /// Copy the content of a directory into a filesystem
    #[command(after_help = "\
The node reads the directory, so it has to be on the node's machine and readable for it. The same
command takes up an import that was stopped.

Example:
  coffer fs import home ~/documents")]
    Import {
        #[command(flatten)]
        name: Name,
        /// The directory whose content is copied
        #[arg(value_name = "SOURCE-DIR")]
        source: PathBuf,
    },
    /// Copy a filesystem's content out, in plain
    #[command(after_help = "\
The node writes the directory, so it has to be on the node's machine and writable for it. The same
command takes up an export that was stopped.

Example:
  coffer fs export home /tmp/restored")]
    Export {
        #[command(flatten)]
        name: Name,
        /// The directory that receives it
        #[arg(value_name = "TARGET-DIR")]
        target: PathBuf,
    },
    /// List a directory of a filesystem
    #[command(after_help = "Example:\n  coffer fs ls home letters/2026")]
    Ls {
        #[command(flatten)]
        name: Name,
        /// The directory, from the filesystem's root
        #[arg(default_value = "/")]
        path: PathBuf,
    },
    /// The KMS: without a command, show it
    #[command(after_help = "Example:\n  coffer fs kms")]
    Kms {
        #[command(subcommand)]
        command: Option<KmsCommand>,
    },
}

/// Which filesystem.
#[derive(Debug, Args)]
pub(crate) struct Name {
    /// The filesystem's name
    #[arg(value_parser = segment())]
    pub(crate) name: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KmsCommand {
    /// Add or update the KMS: a Vault (or OpenBao) with the transit engine
    #[command(
        name = "set-vault",
        after_help = "\
The URL, the key and the token are proved by use before anything is stored. If the new configuration
opens every key as it lies it takes over; otherwise every key moves to it. Without a token the one that
is stored (or the login) is kept: it is sent only to the scheme, host and port that it was given for.

Examples:
  coffer fs kms set-vault https://vault.example.com:8200 coffer-key --token-file /run/token
  vault token create -role=coffer -field=token | coffer fs kms set-vault https://vault.example.com:8200 coffer-key --token-stdin
  coffer fs kms set-vault https://vault.example.com:8200 coffer-key --token-file /run/vault/token --watch-token-file
  coffer fs kms set-vault https://vault.example.com:8200 coffer-key --role-id ID --secret-id-file /run/secret-id
  coffer fs kms set-vault https://vault.example.com:8200 another-key"
    )]
    SetVault(Box<SetVault>),
    /// Remove the KMS, which no filesystem may need any more
    #[command(after_help = "Example:\n  coffer fs kms unset")]
    Unset {
        /// Even while filesystems exist: wrap their keys with local ones that lie beside them on disk, so
        /// that they may be compromised
        #[arg(long)]
        allow_downgrade: bool,
        #[command(flatten)]
        patience: Patience,
    },
    /// Encrypt every filesystem key anew under the newest version of its master key; data stays as it is
    #[command(after_help = "\
Examples:
  vault write -f transit/keys/coffer-key/rotate && coffer fs kms rewrap
  coffer fs kms rewrap home")]
    Rewrap {
        /// Only the key of this filesystem [default: those of all]
        #[arg(value_name = "NAME", value_parser = segment())]
        filesystem: Option<String>,
        #[command(flatten)]
        patience: Patience,
    },
    /// Try all that Coffer needs of the KMS, and name what is missing, what is too much, and what will end
    #[command(after_help = "\
Each permission is proved by use. What the token may do beyond them, and should not, is what Vault
says of it.

Example:
  coffer fs kms check")]
    Check,
    /// Tell whether a node that starts now would open everything, and until when: by another process that opens every key from
    /// what lies on disk
    #[command(after_help = "Example:\n  coffer fs kms rehearse")]
    Rehearse,
    /// Tell what would fail, now and at the next start, if something were taken away in Vault. Changes nothing
    #[command(after_help = "\
Examples:
  coffer fs kms impact --revoke-token
  coffer fs kms impact --min-version 3
  coffer fs kms impact --delete-key --kms-key tenant-a-key")]
    Impact {
        #[command(flatten)]
        of: Impact,
        /// Which master key: one that filesystems have of their own [default: the one that is set for all]
        #[arg(long, value_name = "MASTER-KEY-NAME", conflicts_with = "revoke_token")]
        kms_key: Option<String>,
    },
    /// Print the policy that a token for a master key, or several, needs, and nothing beyond it. Asks nobody
    Policy(Policy),
}

#[derive(Debug, Args)]
#[group(id = "lost", required = true, multiple = false)]
pub(crate) struct Impact {
    /// The token, or the login, that the node has
    #[arg(long)]
    pub(crate) revoke_token: bool,
    /// The master key
    #[arg(long)]
    pub(crate) delete_key: bool,
    /// All versions of the master key below this one (min_decryption_version)
    #[arg(long, value_name = "N")]
    pub(crate) min_version: Option<u64>,
}

/// Print the policy that a token for a master key, or several, needs, and nothing beyond it. Asks nobody
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer fs kms policy coffer-key | vault policy write coffer -
  coffer fs kms policy coffer-key tenant-a-key | vault policy write coffer -")]
pub struct Policy {
    /// The name of the master key in Vault; with those that filesystems have of their own, all of them
    #[arg(required = true)]
    pub master_key_name: Vec<String>,
    /// Where the transit engine is mounted [default: transit]
    #[arg(long, value_name = "PATH")]
    pub transit_path: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct SetVault {
    /// Vault's base URL; https, or http to this machine
    pub(crate) base_url: String,
    /// The name of the master key in Vault
    pub(crate) master_key_name: String,
    /// The token. An argument shows in the process list: better --token-file or --token-stdin [default: the stored one]
    #[arg(
        value_parser = token(),
        conflicts_with_all = ["token_file", "token_stdin"],
    )]
    pub(crate) token: Option<Token>,
    /// Read the token from this file
    #[arg(long, value_name = "FILE", conflicts_with = "token_stdin")]
    pub(crate) token_file: Option<PathBuf>,
    /// Read the token from stdin
    #[arg(long, conflicts_with = "watch_token_file")]
    pub(crate) token_stdin: bool,
    /// Let the node itself read --token-file, and again whenever it changes, as the sink of a Vault Agent does
    #[arg(long, requires = "token_file")]
    pub(crate) watch_token_file: bool,
    /// Log in by AppRole instead of giving a token: the role id
    #[arg(
        long,
        value_name = "ID",
        requires = "secret_id_file",
        conflicts_with_all = ["token", "token_file", "token_stdin"],
    )]
    pub(crate) role_id: Option<String>,
    /// Read the AppRole's secret id from this file
    #[arg(long, value_name = "FILE", requires = "role_id")]
    pub(crate) secret_id_file: Option<PathBuf>,
    /// Where AppRole is mounted [default: approle]
    #[arg(long, value_name = "PATH", requires = "role_id")]
    pub(crate) auth_path: Option<String>,
    /// Vault's namespace (Enterprise, OpenBao)
    #[arg(long, value_name = "N")]
    pub(crate) namespace: Option<String>,
    /// Where the transit engine is mounted [default: transit]
    #[arg(long, value_name = "PATH")]
    pub(crate) transit_path: Option<String>,
    /// Trust the certificates in this file (PEM) instead of the system's
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_cert: Option<PathBuf>,
    /// Connect with the certificate in this file (PEM), where Vault asks its clients for one [default: the stored one, if the token is]
    #[arg(long, value_name = "FILE", requires = "client_key")]
    pub(crate) client_cert: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(long, value_name = "FILE", requires = "client_cert")]
    pub(crate) client_key: Option<PathBuf>,
    /// Allow plain http to another machine: the token and every key then cross the network in clear
    #[arg(long)]
    pub(crate) allow_http: bool,
    #[command(flatten)]
    pub(crate) patience: Patience,
}

/// How long a command waits for what can't go on.
#[derive(Debug, Args)]
pub(crate) struct Patience {
    /// How long to wait for a KMS that is away while keys move; then the command ends with 3, and the job goes on in the node
    #[arg(long = "wait", value_name = "SECONDS", default_value_t = 60)]
    pub(crate) seconds: u64,
}

fn token() -> impl clap::builder::TypedValueParser<Value = Token> {
    clap::builder::NonEmptyStringValueParser::new().map(|text| Token::new(Zeroizing::new(text)))
}

/// What can stand as one segment of a URL's path; the node judges the rest.
fn segment() -> impl clap::builder::TypedValueParser<Value = String> {
    clap::builder::NonEmptyStringValueParser::new().try_map(|text| match text.as_str() {
        "." | ".." => Err("`.` and `..` name directories"),
        _ => Ok(text),
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_has_a_help_text_and_an_example() {
        fn check(command: &clap::Command) {
            let name = command.get_name();
            assert!(command.get_about().is_some(), "{name} has no help text");
            let has_example =
                command.get_after_help().is_some_and(|text| text.to_string().contains("coffer "));
            assert!(has_example, "{name} has no example");
            command.get_subcommands().for_each(check);
        }
        check(&Arguments::command());
    }

    #[test]
    fn a_token_is_not_shown() {
        let line = ["coffer", "fs", "kms", "set-vault", "http://v", "k", "s.secret"];
        let arguments = Arguments::try_parse_from(line).unwrap();
        assert!(!format!("{arguments:?}").contains("s.secret"));
    }
}

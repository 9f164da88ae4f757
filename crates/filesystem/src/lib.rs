//! An encrypted directory tree on a backing directory: what `fs create`, `import`, `export`, `ls`
//! and `verify` do.
//!
//! A backing directory may be any POSIX directory (a local disk, NFS, CephFS, Lustre). In it lie
//!
//! | name | what |
//! |---|---|
//! | `coffer.key` | a copy of the wrapped key ([`read_envelope`], [`BackingHeaders`]); written last when a filesystem is made |
//! | `coffer.previous-key` | the same of the key that it is being re-encrypted from ([`begin_rekey`], [`Filesystem::rekey`], [`end_rekey`]) |
//! | `coffer.lock` | locked (`flock(2)`) by whoever has the filesystem unlocked ([`BackingLocks`]); it has the key id |
//! | `root/` | the tree: each directory with `coffer.dir`, its id; a long name with a side file `….name` |
//! | `coffer.links/` | targets of symlinks that are too long for a symlink's text |
//! | `coffer.tmp/` | things in the making; `resume/` in it is what a stopped job goes on with, or a rekey that died has to give back |
//! | `coffer.lost/` | what `verify` with repair set aside, each with a note |
//!
//! Names, link targets, file contents and `user.*` attributes are encrypted. A FIFO or a device is a small file with an
//! authenticated record, so that no entry is taken for what Coffer did not make it. In the open, on the
//! backing's own inodes, are modes, owners (set as root only), times, sizes, device
//! numbers, hard links, ACLs, `security.*` and `trusted.*`: whoever sees the backing directory sees
//! the shape of the tree. `data-path` has the formats.
//!
//! # Rules that hold everywhere here
//!
//! - Nothing has a name in a tree before it is whole: it is made in the stage and renamed. A kill
//!   at any moment leaves the old thing or the new one.
//! - All system calls are relative to directory handles and follow no symbolic link (`sys`).
//! - A job goes on past what is wrong with one entry and reports it as a [`Problem`]; it ends early
//!   only when the next entry would meet the same ([`ErrorKind::Full`]).
//! - While a rekey runs everything goes on: it works in short turns between the others (`turns`), and the tree is whole
//!   between two turns, under one key or the other.
//! - Jobs are synchronous and use their own threads: a runtime calls them where blocking is allowed.
//!
//! # Memory
//!
//! A job keeps within 128 MiB: at most 8 workers with 8 MiB each, and at most 48 MiB of names of a directory, whatever
//! its size. Measured on two processors: a directory of a million files with names of 60 bytes takes 63 MiB to import,
//! 75 to export, 81 to verify; 2,500 directories in each other with names of 200 bytes take 15. Four things take more with their number: nested directories of more than a hundred
//! thousand entries each, up to 32 MiB for each level on the way down; inodes with several names, some 35 to 70 bytes
//! each until the job ends (in verify until the last name is met; 300,000 of them: 61, 114 and 85 MiB in all); in
//! verify link targets with a record of their own, some 100 bytes each, and side files that are left over in one directory,
//! as much.
//!
//! # Where things are
//!
//! | module | its job |
//! |---|---|
//! | `filesystem` | [`Filesystem`]: the life of one, and the entrance to everything |
//! | `copy`, `walk` | the engine of import and export, between a `Source` and a `Sink` (`side`): what the workers do, and the thread that walks |
//! | `dress` | owner, mode, attributes, times |
//! | `plain`, `sealed` | those two sides: a plain tree, an encrypted one |
//! | `sealed_file` | one encrypted file, in segments |
//! | `stage` | things in the making, hard-link anchors |
//! | `verify`, `finding`, `needed`, `repair` | finds all damage, and what nothing needs; sets it aside, or writes again what has a second source |
//! | `rekey`, `renewal` | seals all again under another key, in place; one file of it |
//! | `turns`, `saved` | a rekey's turns between the other jobs; what it gives back after a crash |
//! | `listing` | what lies in a directory, and how much in all |
//! | `header`, `lock` | `coffer.key`, `coffer.lock` |
//! | `keys` | the key that a tree lies under, or the two |
//! | `report`, `error` | what a job tells, and how things fail |
//! | `note` | what is kept elsewhere and names files, sealed |
//! | `work`, `names`, `trail`, `sys` | workers and progress, a directory's names, the way to an entry, system calls |
//!
//! ```
//! use std::sync::Arc;
//! use filesystem::{Backend, Filesystem, Outcome, Unattended};
//! # use kms_core::{Ciphertext, KeyEnvelope, KeyVersion, KmsConfig, KmsConfigId, WrappedKey};
//!
//! # let home = tempfile::tempdir()?;
//! # let (backing, source) = (home.path().join("backing"), home.path().join("source"));
//! # std::fs::create_dir(&source)?;
//! # std::fs::write(source.join("plan.txt"), "attack at dawn")?;
//! # let key = Arc::new(kms_core::FilesystemKey::generate()?);
//! # let id = KmsConfigId::random();
//! # let envelope = KeyEnvelope {
//! #     format: kms_core::ENVELOPE_FORMAT, filesystem: "plans".into(), revision: 1, exposed: false, own_master_key: None,
//! #     wrapped: WrappedKey { key_id: key.id(), config_id: id,
//! #         ciphertext: Ciphertext { text: "vault:v1:…".into(), version: KeyVersion(1) } },
//! #     kms: KmsConfig { id, kind: "vault".into(), address: "https://vault".into(),
//! #         master_key: "coffer".into(), settings: Default::default() },
//! # };
//! // `key` came from a KMS, and `envelope` is that key as the KMS wrapped it.
//! let plans = Filesystem::create(&backing, key, &envelope, Backend::default())?;
//! let report = plans.import(&source, None, &Unattended)?;
//! assert_eq!(report.outcome, Outcome::Done);
//! assert_eq!(plans.list("/".as_ref())?.entries[0].name, "plan.txt");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod copy;
mod dress;
mod error;
mod filesystem;
mod finding;
mod header;
mod keys;
mod listing;
mod lock;
mod names;
mod needed;
mod note;
mod plain;
#[cfg(test)]
mod power_cut;
mod rekey;
mod renewal;
mod repair;
mod report;
mod saved;
mod sealed;
mod sealed_file;
mod side;
mod stage;
mod sys;
mod trail;
mod turns;
mod verify;
mod walk;
mod work;

pub use data_path::Backend;
pub use error::{Error, ErrorKind};
pub use filesystem::{Filesystem, real_place};
pub use header::{
    BackingHeaders, begin_rekey, end_rekey, prepare_rekey, read_envelope, read_previous_envelope,
};
pub use listing::{Entry, EntryKind, Listing, Usage};
pub use lock::{BackingLock, BackingLocks, is_open};
pub use report::{
    Checkpoint, Control, Outcome, Problem, ProblemKind, Progress, Report, Unattended,
};

//! What Coffer writes at rest: AES-256-GCM blocks, key derivation, encrypted names, and every
//! on-disk format.
//!
//! Bytes in, bytes out: this crate opens no file. `docs/formats.md` specifies every byte; here is
//! the code in the order in which a reader of a file meets it:
//!
//! | module | what |
//! |---|---|
//! | [`layout`] | where everything lies in a backing file; sizes |
//! | `header` | the file's header: epochs, commitment, sealed size |
//! | `keys` | what is derived from a filesystem key |
//! | `tag_page` | the slots that open a group's blocks |
//! | `file`, `group` | [`FileCipher`]: seals and opens blocks, tag pages, groups |
//! | `renew` | overwriting in place, and the change to another salt or key |
//! | `names`, [`dir`], [`symlink`], `node`, [`xattr`] | names, directory ids, link targets, FIFOs and devices, attributes |
//! | `note` | what is kept elsewhere and names files |
//!
//! ```
//! use std::sync::Arc;
//! use data_path::{Backend, Entries, FilesystemKeys, layout};
//!
//! let key = Arc::new(kms_core::FilesystemKey::generate()?);
//! let keys = FilesystemKeys::new(key, Backend::default())?;
//!
//! // A small file is one group: a tag page, which starts with the file's header, and its blocks.
//! let text = b"attack at dawn";
//! let file = keys.create_file()?;
//! let mut backing = vec![0; layout::group_len(0, text.len() as u64)];
//! backing[layout::PAGE..].copy_from_slice(text);
//! file.seal_group(0, &mut backing, Entries::ALL, None)?;
//! file.write_header(&mut backing, text.len() as u64)?;
//!
//! let file = keys.open_file(&backing, backing.len() as u64)?;
//! assert_eq!(file.size(), text.len() as u64);
//! let opened = file.open_group(0, &mut backing)?;
//! assert!(opened.is_sound());
//! assert_eq!(&backing[layout::data_range(0, backing.len())], text);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod aad;
mod aead;
mod budget;
pub mod dir;
mod error;
mod file;
#[cfg(test)]
mod golden;
mod group;
mod header;
mod id;
mod keys;
pub mod layout;
mod names;
mod node;
mod nonce;
mod note;
mod renew;
mod siv;
pub mod symlink;
mod tag_page;
#[cfg(test)]
mod vectors;
pub mod xattr;

pub use aead::Backend;
pub use budget::SealBudget;
pub use error::FormatError;
pub use file::{FileCipher, FileState};
pub use group::{HoleMap, OpenedGroup};
pub use id::{DirId, FileId, LinkId};
pub use keys::FilesystemKeys;
pub use names::{BackingEntry, BackingName, NAME_MAX, SideFile};
pub use node::{Node, NodeKind};
pub use renew::RenewedGroup;
pub use tag_page::{Entries, Slot, TagPage};
pub use xattr::XattrOwner;

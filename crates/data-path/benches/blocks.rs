//! Holds the data path against the bare libraries: 16 blocks of 4 KiB, one by one and as a group,
//! sealed and opened on one core. Exits with 1 below the bar, which is for both acts together: each is shown too.
//!
//! Ours makes nonce and associated data, counts the seal, and puts the tag into its place in the
//! tag page; a group also has its tag page sealed or opened. The bare calls get a nonce and 48
//! bytes of associated data for nothing. All run by turns in one process on buffers of their own;
//! each figure is the median of its passes.

use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use aes_gcm::aead::{AeadInOut, KeyInit};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use data_path::{Backend, Entries, FileCipher, FilesystemKeys, TagPage, layout};

const BAR: f64 = 0.85;
const PASSES: usize = 4001;
const BLOCKS: usize = 16;

const KEY: [u8; 32] = [7; 32];
const NONCE: [u8; 12] = [9; 12];
const AAD: [u8; 48] = [3; 48];

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Seals its 16 blocks, then opens them again.
trait Contestant {
    fn seal(&mut self) -> Result;
    fn open(&mut self) -> Result;
}

fn main() -> Result<ExitCode> {
    let mut met = true;
    for backend in [Backend::AwsLc, Backend::RustCrypto] {
        let bare: Box<dyn Contestant> = match backend {
            Backend::AwsLc => Box::new(AwsLc::new()?),
            Backend::RustCrypto => Box::new(RustCrypto::new()),
        };
        let mut all = [bare, Box::new(OneByOne::new(backend)?), Box::new(Group::new(backend)?)];
        let [bare, one_by_one, group] = measure(&mut all)?;
        let [bare_seal, bare_open] = bare;
        for (shape, [seal, open]) in [("one by one", one_by_one), ("16 in a row", group)] {
            let (ours, bare) = (seal + open, bare_seal + bare_open);
            let ratio = bare / ours;
            met &= ratio >= BAR;
            let backend = format!("{backend:?}");
            println!(
                "{backend:10} sealed and opened {shape:11}: {ours:6.1} ns a block, bare {bare:6.1} ns, ratio {ratio:.3}"
            );
            for (act, ours, bare) in [("seal", seal, bare_seal), ("open", open, bare_open)] {
                println!(
                    "  {act} alone: {ours:6.1} ns a block, bare {bare:6.1} ns ({:.3})",
                    bare / ours
                );
            }
        }
    }
    println!("bar: a ratio of {BAR}; {}", if met { "met" } else { "MISSED" });
    Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The median times of sealing and of opening, in nanoseconds a block, of each contestant.
fn measure<const N: usize>(all: &mut [Box<dyn Contestant>; N]) -> Result<[[f64; 2]; N]> {
    let mut times = [(); N].map(|()| [Vec::with_capacity(PASSES), Vec::with_capacity(PASSES)]);
    for _ in 0..PASSES {
        for (contestant, [seals, opens]) in all.iter_mut().zip(&mut times) {
            let start = Instant::now();
            contestant.seal()?;
            let sealed = Instant::now();
            contestant.open()?;
            seals.push(sealed.duration_since(start));
            opens.push(sealed.elapsed());
        }
    }
    Ok(times.map(|both| {
        both.map(|mut times| {
            times.sort_unstable();
            times[PASSES / 2].as_nanos() as f64 / BLOCKS as f64
        })
    }))
}

struct AwsLc {
    key: LessSafeKey,
    data: Vec<u8>,
    tags: [[u8; 16]; BLOCKS],
}

impl AwsLc {
    fn new() -> Result<Self> {
        let key = UnboundKey::new(&AES_256_GCM, &KEY).map_err(|_| "a key was refused")?;
        let (data, tags) = (vec![5; BLOCKS * layout::PAGE], [[0; 16]; BLOCKS]);
        Ok(Self { key: LessSafeKey::new(key), data, tags })
    }
}

impl Contestant for AwsLc {
    fn seal(&mut self) -> Result {
        for (block, tag) in self.data.chunks_mut(layout::PAGE).zip(&mut self.tags) {
            let sealed = self
                .key
                .seal_in_place_separate_tag(Nonce::from(&NONCE), Aad::from(black_box(&AAD)), block)
                .map_err(|_| "sealing failed")?;
            tag.copy_from_slice(sealed.as_ref());
        }
        Ok(())
    }

    fn open(&mut self) -> Result {
        for (block, tag) in self.data.chunks_mut(layout::PAGE).zip(&self.tags) {
            let (nonce, aad) = (Nonce::from(&NONCE), Aad::from(black_box(&AAD)));
            self.key
                .open_in_place_separate_tag(nonce, aad, tag, block)
                .map_err(|_| "opening failed")?;
        }
        Ok(())
    }
}

struct RustCrypto {
    key: aes_gcm::Aes256Gcm,
    data: Vec<u8>,
    tags: [aes_gcm::Tag; BLOCKS],
}

impl RustCrypto {
    fn new() -> Self {
        let (data, tags) = (vec![5; BLOCKS * layout::PAGE], Default::default());
        Self { key: aes_gcm::Aes256Gcm::new(&KEY.into()), data, tags }
    }
}

impl Contestant for RustCrypto {
    fn seal(&mut self) -> Result {
        for (block, tag) in self.data.chunks_mut(layout::PAGE).zip(&mut self.tags) {
            *tag = self.key.encrypt_inout_detached(&NONCE.into(), black_box(&AAD), block.into())?;
        }
        Ok(())
    }

    fn open(&mut self) -> Result {
        for (block, tag) in self.data.chunks_mut(layout::PAGE).zip(&self.tags) {
            self.key.decrypt_inout_detached(&NONCE.into(), black_box(&AAD), block.into(), tag)?;
        }
        Ok(())
    }
}

fn new_file(backend: Backend) -> Result<FileCipher> {
    let key = Arc::new(kms_core::FilesystemKey::generate()?);
    Ok(FilesystemKeys::new(key, backend)?.create_file()?)
}

struct OneByOne {
    file: FileCipher,
    data: Vec<u8>,
    tags: TagPage,
}

impl OneByOne {
    fn new(backend: Backend) -> Result<Self> {
        let (data, tags) = (vec![5; BLOCKS * layout::PAGE], TagPage::default());
        Ok(Self { file: new_file(backend)?, data, tags })
    }
}

impl Contestant for OneByOne {
    fn seal(&mut self) -> Result {
        for (entry, block) in self.data.chunks_mut(layout::PAGE).enumerate() {
            let slot = self.file.seal_block(entry as u64, block)?;
            self.tags.fill_older(entry, &slot);
        }
        Ok(())
    }

    fn open(&mut self) -> Result {
        for (entry, block) in self.data.chunks_mut(layout::PAGE).enumerate() {
            let slot = self.tags.newer(entry).ok_or("the slot is empty")?;
            self.file.open_block(entry as u64, block, &slot)?;
        }
        Ok(())
    }
}

struct Group {
    file: FileCipher,
    buffer: Vec<u8>,
}

impl Group {
    fn new(backend: Backend) -> Result<Self> {
        Ok(Self { file: new_file(backend)?, buffer: vec![5; (BLOCKS + 1) * layout::PAGE] })
    }
}

impl Contestant for Group {
    fn seal(&mut self) -> Result {
        Ok(self.file.seal_group(1, &mut self.buffer, Entries::ALL, None)?)
    }

    fn open(&mut self) -> Result {
        let opened = self.file.open_group(1, &mut self.buffer)?;
        if opened.is_sound() { Ok(()) } else { Err("the group is damaged".into()) }
    }
}

//! Imports a directory under a throwaway key, and says how fast and with how much memory.
//!
//! ```sh
//! cargo run --release -p filesystem --example import -- SOURCE BACKING [EXPORT-TARGET]
//! ```
//!
//! BACKING must not exist or be empty; nobody can read it afterwards. With EXPORT-TARGET the tree is
//! also exported there.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use filesystem::{Backend, Checkpoint, Control, Filesystem, Problem, Progress, Report};
use kms_core::{
    Ciphertext, FilesystemKey, KeyEnvelope, KeyVersion, KmsConfig, KmsConfigId, WrappedKey,
};

struct Quiet;

impl Control for Quiet {
    fn stop_requested(&self) -> bool {
        false
    }
    fn progress(&self, _: &Progress) {}
    fn checkpoint(&self, _: &Checkpoint) {}
    fn problem(&self, problem: &Problem) {
        eprintln!("{}: {}", problem.path.display(), problem.reason);
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [source, backing, target @ ..] = &arguments[..] else {
        return Err("usage: import SOURCE BACKING [EXPORT-TARGET]".into());
    };
    let key = Arc::new(FilesystemKey::generate()?);
    let config_id = KmsConfigId::random();
    let ciphertext = Ciphertext { text: "none".into(), version: KeyVersion(1) };
    let envelope = KeyEnvelope {
        format: kms_core::ENVELOPE_FORMAT,
        filesystem: "throwaway".into(),
        wrapped: WrappedKey { key_id: key.id(), config_id, ciphertext },
        kms: KmsConfig {
            id: config_id,
            kind: "none".into(),
            address: String::new(),
            master_key: String::new(),
            settings: Default::default(),
        },
        revision: 1,
        exposed: false,
        own_master_key: None,
    };
    let filesystem = Filesystem::create(Path::new(backing), key, &envelope, Backend::default())?;
    let start = Instant::now();
    tell("import", start, &filesystem.import(Path::new(source), None, &Quiet)?);
    if let [target] = target {
        let start = Instant::now();
        tell("export", start, &filesystem.export(Path::new(target), None, &Quiet)?);
        let start = Instant::now();
        tell("verify", start, &filesystem.verify(false, &Quiet)?);
    }
    let status = std::fs::read_to_string("/proc/self/status")?;
    for line in status.lines().filter(|line| line.starts_with("VmHWM")) {
        println!("{line}");
    }
    Ok(())
}

fn tell(what: &str, start: Instant, report: &Report) {
    let seconds = start.elapsed().as_secs_f64();
    let Progress { bytes_done, files_done, failed, .. } = report.progress;
    println!(
        "{what}: {seconds:.3} s, {:.0} MB/s, {:.0} entries/s, {failed} problems",
        bytes_done as f64 / 1e6 / seconds,
        files_done as f64 / seconds,
    );
}

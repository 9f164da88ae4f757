//! A new key for a filesystem: `coffer fs rekey` beside the import of the same data.
//!
//! Each round imports into a fresh filesystem and gives that a new key, by a node that was started anew, so that its memory is
//! its own. Both clocks run from the start of the command to the end of a `syncfs` of the disk. What is re-encrypted lies in the page
//! cache, as the import's source does.

use std::fs;

use anyhow::Result;

use super::import::{Kind, Source};
use super::kms::{Kms, MASTER_KEY};
use super::measure::{self, Sample};
use super::node::{Node, Place};
use super::report::{self, Bar, Bound, Row, Section};
use super::{Bench, progress};

/// A re-encryption's memory in MiB, at any size.
const MEMORY: f64 = 128.0;

/// What the nodes are called in the report.
const IMPORTS: &str = "coffer serve, import";
const REKEYS: &str = "coffer serve, rekey";

pub(super) fn run(bench: &Bench<'_>) -> Result<Vec<Section>> {
    let kms = Kms::embedded(&bench.program, bench.folder)?;
    let mut sections = Vec::new();
    for kind in [Kind::File, Kind::Tree] {
        progress(&format!("rekey: making {}", kind.title(bench.quick)));
        let source = Source::make(kind, bench)?;
        sections.push(measure(bench, &kms, &source)?);
        fs::remove_dir_all(&source.folder)?;
    }
    Ok(sections)
}

fn measure(bench: &Bench<'_>, kms: &Kms, source: &Source) -> Result<Section> {
    let rounds = if bench.quick { 1 } else { 5 };
    let (mut imports, mut rekeys) = (Vec::new(), Vec::new());
    let used = bench.folder.join("used");
    fs::create_dir(&used)?;
    for round in 0..rounds {
        let (import, rekey) = once(bench, kms, source)?;
        progress(&format!(
            "rekey: round {} of {rounds}: import {:6.2} s, rekey {:6.2} s",
            round + 1,
            import.seconds,
            rekey.seconds
        ));
        // As in `import`: who makes files pays for those that were just deleted.
        match source.kind {
            Kind::File => fs::remove_dir_all(bench.folder.join(TARGET))?,
            Kind::Tree => fs::rename(bench.folder.join(TARGET), used.join(round.to_string()))?,
        }
        measure::sync(bench.folder)?;
        imports.push(import);
        rekeys.push(rekey);
    }
    fs::remove_dir_all(used)?;
    let rows = [("coffer fs import", &imports), ("coffer fs rekey", &rekeys)];
    let rows = rows.map(|(name, samples)| Row::of(name, samples, source.bytes));
    let ratio = rows[0].median() / rows[1].median();
    let peaks = report::peaks(imports.iter().chain(&rekeys));
    let peak = peaks.get(REKEYS).copied().unwrap_or_default();
    Ok(Section {
        title: format!("rekey: {}, rounds: {rounds}", source.kind.title(bench.quick)),
        rows: rows.into(),
        bars: vec![Bar {
            what: "peak memory of the node that rekeys".to_owned(),
            value: peak as f64 / f64::from(1 << 20),
            unit: "MiB",
            bound: Bound::AtMost(MEMORY),
            limit: "It holds more than the buffers of its workers".to_owned(),
        }],
        notes: vec![format!("import / rekey {ratio:.2}")],
        peaks,
    })
}

/// Where the filesystem lies, in the benchmark's folder.
const TARGET: &str = "target";

/// An import into a fresh filesystem, and its re-encryption.
fn once(bench: &Bench<'_>, kms: &Kms, source: &Source) -> Result<(Sample, Sample)> {
    const NAME: &str = "bench";
    let (folder, target) = (bench.folder.join("node"), bench.folder.join(TARGET));
    let log = bench.folder.join("rekey.log");
    let place = Place::new(&bench.program, &folder)?;
    let node = Node::start(&place)?;
    let token = kms.token_file(&folder)?;
    place.coffer(&["fs", "kms", "set-vault", &kms.url, MASTER_KEY, "--token-file", &token])?;
    place.coffer(&["fs", "create", NAME, "--backing", &target.display().to_string()])?;
    measure::sync(bench.folder)?;
    let mut import = place.command(&["fs", "import", NAME, &source.folder.display().to_string()]);
    let import = measure::command(&mut import, &log, &[(IMPORTS, node.id())], &target)?;
    drop(node);
    let mut node = Node::start(&place)?;
    node.wait_for_unlock(1)?;
    let mut rekey = place.command(&["fs", "rekey", NAME]);
    let rekey = measure::command(&mut rekey, &log, &[(REKEYS, node.id())], &target)?;
    drop(node);
    fs::remove_dir_all(folder)?;
    Ok((import, rekey))
}

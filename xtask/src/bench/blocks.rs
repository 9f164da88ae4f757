//! The data path beside the bare cipher libraries: what `data-path`'s own benchmark measures.

use std::fs;
use std::io::BufReader;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use cargo_metadata::Message;

use super::measure::{self, Peaks};
use super::report::{Bar, Bound, Section};
use super::{Bench, progress};
use crate::process::{self, Background};

const BAR: f64 = 0.85;

pub(super) fn run(bench: &Bench<'_>) -> Result<Section> {
    progress("blocks: building and running the benchmark of data-path");
    let program = build(bench)?;
    let log = bench.folder.join("blocks.log");
    let mut child = Background::start(Command::new(program).arg("--bench"), &log)?;
    let mut peaks = Peaks::new();
    // Below the bar it ends in failure, which is no error here: what it printed is judged below.
    while let Ok(true) = child.is_running() {
        if let Some(bytes) = measure::peak_memory(child.id()) {
            measure::raise(&mut peaks, "the benchmark of data-path", bytes);
        }
        process::pause()?;
    }
    let printed = fs::read_to_string(&log)?;
    Ok(Section {
        title: "blocks: 16 blocks of 4 KiB on one core; bare library calls / ours".to_owned(),
        rows: Vec::new(),
        bars: ratios(&printed).with_context(|| format!("the benchmark printed:\n{printed}"))?,
        notes: printed
            .lines()
            .filter(|line| line.contains(" alone: "))
            .map(str::to_owned)
            .collect(),
        peaks,
    })
}

/// Builds it as `cargo bench` does. It is run without cargo, so that its memory is its own.
fn build(bench: &Bench<'_>) -> Result<PathBuf> {
    let mut cargo = Command::new("cargo");
    cargo.args(["bench", "--quiet", "--package", "data-path", "--bench", "blocks", "--no-run"]);
    cargo.arg("--message-format=json-render-diagnostics").current_dir(&bench.workspace.root);
    let mut child = cargo.stdout(Stdio::piped()).spawn()?;
    let messages = child.stdout.take().context("cargo has no output")?;
    let mut program = None;
    for message in Message::parse_stream(BufReader::new(messages)) {
        if let Message::CompilerArtifact(artifact) = message? {
            program = artifact.executable.or(program);
        }
    }
    ensure!(child.wait()?.success(), "{} failed", process::show(&cargo));
    Ok(program.context("cargo built no benchmark")?.into())
}

/// Reads the lines `NAME: … ratio R`.
fn ratios(printed: &str) -> Result<Vec<Bar>> {
    let lines = printed.lines().filter_map(|line| {
        let (name, figures) = line.split_once(':')?;
        Some((name, figures, figures.split_once(", ratio ")?.1))
    });
    let bars = lines.map(|(name, figures, ratio)| {
        Ok(Bar {
            what: name.split_whitespace().collect::<Vec<_>>().join(" "),
            value: ratio.trim().parse()?,
            unit: "×",
            bound: Bound::AtLeast(BAR),
            limit: format!(
                "What is ours beside the cipher takes the difference:{}",
                figures.split(", ratio").next().unwrap_or_default()
            ),
        })
    });
    let bars = bars.collect::<Result<Vec<_>>>()?;
    ensure!(!bars.is_empty(), "no line with a ratio");
    Ok(bars)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_read_from_what_the_benchmark_prints() {
        let printed = "AwsLc      sealed and opened one by one :  600.1 ns a block, bare  570.0 ns, ratio 0.950\n\
                         seal alone:  300.1 ns a block, bare  280.0 ns (0.933)\n\
                       bar: a ratio of 0.85; met\n";
        let bars = ratios(printed).unwrap();
        assert_eq!(bars.len(), 1);
        assert_eq!(bars[0].what, "AwsLc sealed and opened one by one");
        assert_eq!(bars[0].value, 0.95);
        assert!(ratios("nothing").is_err());
    }
}

//! Times, ratios and bars, as tables for people and as JSON for programs.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::measure::{Peaks, Sample, raise};
use crate::process;

/// All that was measured.
pub(super) struct Report {
    /// As it was at the beginning.
    pub(super) machine: Machine,
    pub(super) load_after: String,
    pub(super) sections: Vec<Section>,
    pub(super) quick: bool,
}

/// What was measured by turns.
pub(super) struct Section {
    pub(super) title: String,
    pub(super) rows: Vec<Row>,
    pub(super) bars: Vec<Bar>,
    /// What a reader must know: configurations, what could not be measured.
    pub(super) notes: Vec<String>,
    pub(super) peaks: Peaks,
}

/// One contestant's runs.
pub(super) struct Row {
    pub(super) name: String,
    pub(super) seconds: Vec<f64>,
    pub(super) detail: String,
}

/// What the project demands of a figure.
pub(super) struct Bar {
    pub(super) what: String,
    pub(super) value: f64,
    pub(super) unit: &'static str,
    pub(super) bound: Bound,
    /// What keeps the figure where it is; shown when the bar is missed.
    pub(super) limit: String,
}

#[derive(Clone, Copy)]
pub(super) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bar {
    fn is_met(&self) -> bool {
        match self.bound {
            Bound::AtLeast(bound) => self.value >= bound,
            Bound::AtMost(bound) => self.value <= bound,
        }
    }
}

/// The value in the middle, or the mean of the two there.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let upper = sorted.len() / 2;
    let lower = sorted.len().saturating_sub(1) / 2;
    (sorted[lower] + sorted[upper]) / 2.0
}

impl Row {
    /// Of runs that each moved `bytes`.
    pub(super) fn of(name: &str, samples: &[Sample], bytes: u64) -> Self {
        let seconds: Vec<f64> = samples.iter().map(|sample| sample.seconds).collect();
        let rate = bytes as f64 / 1e6 / median(&seconds);
        let detail = format!("{rate:>6.0} MB/s, processors {:.0} % busy", 100.0 * busy(samples));
        Self { name: name.to_owned(), seconds, detail }
    }

    pub(super) fn median(&self) -> f64 {
        median(&self.seconds)
    }

    fn min(&self) -> f64 {
        self.seconds.iter().copied().fold(f64::INFINITY, f64::min)
    }
}

/// How busy the processors were in the middle one of these runs.
pub(super) fn busy(samples: &[Sample]) -> f64 {
    median(&samples.iter().map(|sample| sample.busy).collect::<Vec<_>>())
}

/// The highest peaks of all runs.
pub(super) fn peaks<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> Peaks {
    let mut peaks = Peaks::new();
    for (name, bytes) in samples.into_iter().flat_map(|sample| &sample.peaks) {
        raise(&mut peaks, name, *bytes);
    }
    peaks
}

impl Report {
    /// The bars that were missed.
    pub(super) fn missed(&self) -> Vec<String> {
        let bars = self.sections.iter().flat_map(|section| &section.bars);
        bars.filter(|bar| !bar.is_met()).map(|bar| format!("{}: {bar}", bar.what)).collect()
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "machine": self.machine.to_json(),
            "load_after": self.load_after,
            "quick": self.quick,
            "sections": self.sections.iter().map(Section::to_json).collect::<Vec<_>>(),
        })
    }

    fn verdict(&self, bar: &Bar) -> String {
        match (bar.is_met(), self.quick) {
            (_, true) => "(not judged: --quick)".to_owned(),
            (true, _) => "met".to_owned(),
            (false, _) => format!("MISSED. {}", bar.limit),
        }
    }
}

impl Section {
    /// Of a benchmark that lacks something here: what.
    pub(super) fn not_measured(title: String, why: &str) -> Self {
        let (rows, bars, peaks) = Default::default();
        Self { title, rows, bars, notes: vec![why.to_owned()], peaks }
    }

    fn to_json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            json!({
                "name": row.name,
                "median_seconds": row.median(),
                "min_seconds": row.min(),
                "seconds": row.seconds,
                "detail": row.detail.trim(),
            })
        });
        let bars = self.bars.iter().map(|bar| {
            let (bound, value) = match bar.bound {
                Bound::AtLeast(value) => ("at_least", value),
                Bound::AtMost(value) => ("at_most", value),
            };
            json!({
                "what": bar.what,
                "value": bar.value,
                "unit": bar.unit,
                bound: value,
                "met": bar.is_met(),
                "limit": (!bar.is_met()).then_some(&bar.limit),
            })
        });
        json!({
            "title": self.title,
            "rows": rows.collect::<Vec<_>>(),
            "bars": bars.collect::<Vec<_>>(),
            "notes": self.notes,
            "peak_memory_bytes": self.peaks,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}; load average {} at the end", self.machine, self.load_after)?;
        for section in &self.sections {
            writeln!(f, "\n{}", section.title)?;
            if !section.rows.is_empty() {
                writeln!(f, "  {:<38}{:>10}{:>10}", "", "median", "min")?;
            }
            for row in &section.rows {
                let (median, min) = (clock(row.median()), clock(row.min()));
                writeln!(f, "  {:<38}{median:>10}{min:>10}  {}", row.name, row.detail)?;
            }
            for bar in &section.bars {
                writeln!(f, "  {:<38}{bar}  {}", bar.what, self.verdict(bar))?;
            }
            for note in &section.notes {
                writeln!(f, "  {note}")?;
            }
        }
        writeln!(f, "\npeak memory (resident, the highest of all rounds)")?;
        for section in &self.sections {
            for (process, bytes) in &section.peaks {
                let mib = *bytes as f64 / f64::from(1 << 20);
                writeln!(f, "  {:<38}{mib:>8.1} MiB  {}", process, section.title)?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, bound) = match self.bound {
            Bound::AtLeast(bound) => ("at least", bound),
            Bound::AtMost(bound) => ("at most", bound),
        };
        write!(f, "{:>8.2} {:<3} {word} {bound}", self.value, self.unit)
    }
}

fn clock(seconds: f64) -> String {
    if seconds < 1.0 { format!("{:.1} ms", seconds * 1000.0) } else { format!("{seconds:.2} s") }
}

/// What it ran on.
pub(super) struct Machine {
    processor: String,
    processors: usize,
    memory: u64,
    kernel: String,
    /// The kind of filesystem that the files lie on.
    filesystem: String,
    load_before: String,
}

impl Machine {
    pub(super) fn look(folder: &Path) -> Result<Self> {
        let info = fs::read_to_string("/proc/cpuinfo")?;
        let processor = info.lines().find(|line| line.starts_with("model name"));
        let processor = processor.and_then(|line| line.split_once(": "));
        let memory = fs::read_to_string("/proc/meminfo")?;
        let memory = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let memory = memory.and_then(|line| line.trim().strip_suffix(" kB"));
        let memory: u64 = memory.context("/proc/meminfo has no MemTotal")?.trim().parse()?;
        let filesystem = process::output(
            Command::new("findmnt").args(["-n", "-o", "FSTYPE", "-T"]).arg(folder),
        )?;
        Ok(Self {
            processor: processor.map_or("unknown processor", |(_, name)| name).to_owned(),
            processors: std::thread::available_parallelism()?.get(),
            memory: memory * 1024,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            filesystem: filesystem.trim().to_owned(),
            load_before: load()?,
        })
    }

    fn to_json(&self) -> Value {
        json!({
            "processor": self.processor,
            "processors": self.processors,
            "memory_bytes": self.memory,
            "kernel": self.kernel,
            "filesystem": self.filesystem,
            "load_before": self.load_before,
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { processor, processors, kernel, filesystem, load_before, .. } = self;
        let gib = self.memory >> 30;
        write!(
            f,
            "{processor}, {processors} processors, {gib} GiB, Linux {kernel}, {filesystem}; "
        )?;
        write!(f, "load average {load_before} at the beginning")
    }
}

/// The load average of the last minute.
pub(super) fn load() -> Result<String> {
    let load = fs::read_to_string("/proc/loadavg")?;
    Ok(load.split_whitespace().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(value: f64, bound: Bound) -> Bar {
        Bar { what: "a".into(), value, unit: "×", bound, limit: "the disk".into() }
    }

    fn report(bars: Vec<Bar>) -> Report {
        let machine = Machine::look(Path::new("/")).unwrap();
        let row = Row { name: "coffer".into(), seconds: vec![0.5, 2.0], detail: String::new() };
        let section = Section {
            title: "t".into(),
            rows: vec![row],
            bars,
            notes: vec![],
            peaks: Peaks::from([("coffer".to_owned(), 3 << 20)]),
        };
        Report { machine, load_after: load().unwrap(), sections: vec![section], quick: false }
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[7.0]), 7.0);
    }

    #[test]
    fn a_missed_bar_is_named_with_its_limit() {
        let met = report(vec![bar(2.0, Bound::AtLeast(2.0)), bar(2.0, Bound::AtMost(2.0))]);
        assert!(met.missed().is_empty());
        assert!(!met.to_string().contains("MISSED"));

        let missed = report(vec![bar(1.9, Bound::AtLeast(2.0)), bar(2.1, Bound::AtMost(2.0))]);
        assert_eq!(missed.missed().len(), 2);
        assert!(missed.to_string().contains("MISSED. the disk"), "{missed}");
        let json = missed.to_json();
        assert_eq!(json["sections"][0]["bars"][0]["met"], false);
        assert_eq!(json["sections"][0]["bars"][1]["limit"], "the disk");
        assert_eq!(json["sections"][0]["rows"][0]["median_seconds"], 1.25);
    }
}

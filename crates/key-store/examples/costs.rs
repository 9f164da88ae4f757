//! What the store on disk costs here: `cargo run --release -p key-store --example costs [DIR]`.

use std::path::Path;
use std::time::{Duration, Instant};

use key_store::SledStore;
use kms_core::{Commit, KeyStore};

const RECORDS: u64 = 10_000;
const COMMITS: u32 = 2_000;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let base = std::env::args().nth(1).unwrap_or_else(|| ".".into());
    let root = tempfile::tempdir_in(base)?;
    let dir = root.path().join("store");
    let key = |n: u64| format!("fs/{n:05}");
    let value = vec![b'x'; 600];

    let store = SledStore::open(&dir)?;
    let all = (0..RECORDS).fold(Commit::new(), |commit, n| commit.put(key(n), value.clone()));
    let started = Instant::now();
    store.commit(all).await?;
    report("one commit of 10,000 records", started.elapsed());

    let started = Instant::now();
    let mut times = Vec::new();
    for n in 0..u64::from(COMMITS) {
        let one = Instant::now();
        store.commit(Commit::new().put(key(n * 7919 % RECORDS), value.clone())).await?;
        times.push(one.elapsed());
    }
    report("a commit of one record, mean", started.elapsed() / COMMITS);
    times.sort();
    report("… the slowest in a hundred", times[times.len() * 99 / 100]);

    let started = Instant::now();
    let page = store.list("fs/", None, usize::MAX).await?;
    report(&format!("a list of {} records", page.records.len()), started.elapsed());
    let started = Instant::now();
    for n in 0..RECORDS {
        store.get(&key(n)).await?;
    }
    report("a get", started.elapsed() / 10_000);
    drop(store);

    let started = Instant::now();
    let store = SledStore::open(&dir)?;
    report("open with 10,000 records", started.elapsed());
    println!(
        "{:>10} KiB  on disk, {} KiB of records",
        size(&dir)? / 1024,
        page.records.iter().map(|r| r.value.len()).sum::<usize>() / 1024
    );
    drop(store);
    Ok(())
}

fn report(what: &str, time: Duration) {
    println!("{:>10.3} ms   {what}", time.as_secs_f64() * 1000.0);
}

fn size(dir: &Path) -> std::io::Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        sum += if meta.is_dir() { size(&entry.path())? } else { meta.len() };
    }
    Ok(sum)
}

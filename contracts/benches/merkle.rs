//! `ops/bench merkle`: what a job costs on its way into a batch and out of it as a proof, each
//! beside the Keccak hashing that cannot be saved. Rows: `{name, value, unit, baseline, ratio}`.

use std::{
    hint::black_box,
    io::Write as _,
    time::{Duration, Instant},
};

use alloy::primitives::{B256, keccak256};
use contracts::merkle::{JobsTree, verify_job_proof};
use serde::Serialize;

/// Jobs of one batch: the relayer's default size.
const JOBS: u32 = 1_024;
/// Rounds of which the fastest counts: the others were disturbed.
const ROUNDS: usize = 50;

#[derive(Serialize)]
struct Row {
    name: &'static str,
    value: f64,
    unit: &'static str,
    baseline: f64,
    ratio: f64,
}

/// The fastest of the rounds, in nanoseconds for each job.
fn fastest(mut round: impl FnMut()) -> f64 {
    let best = (0..ROUNDS)
        .map(|_| timed(&mut round))
        .min()
        .unwrap_or_default();
    best.as_secs_f64() * 1e9 / f64::from(JOBS)
}

fn timed(round: &mut impl FnMut()) -> Duration {
    let start = Instant::now();
    round();
    start.elapsed()
}

/// What `hashes` Keccak hashes of two nodes cost, for each job.
fn hashing(hashes: u32) -> f64 {
    let pair = [7_u8; 64];
    fastest(|| {
        for _ in 0..hashes {
            black_box(keccak256(black_box(pair)));
        }
    })
}

fn row(name: &'static str, value: f64, baseline: f64) -> Row {
    Row {
        name,
        value,
        unit: "ns/job",
        baseline,
        ratio: value / baseline,
    }
}

fn rows() -> Vec<Row> {
    let leaves: Vec<B256> = (0..JOBS).map(|job| keccak256(job.to_be_bytes())).collect();
    let tree = JobsTree::new(&leaves).expect("there are leaves");
    let proofs: Vec<Vec<B256>> = (0..leaves.len()).filter_map(|at| tree.proof(at)).collect();
    let build = fastest(|| drop(black_box(JobsTree::new(black_box(&leaves)))));
    let prove = fastest(|| {
        (0..leaves.len()).for_each(|at| drop(black_box(tree.proof(black_box(at)))));
    });
    let verify = fastest(|| {
        for (leaf, proof) in leaves.iter().zip(&proofs) {
            assert!(verify_job_proof(tree.root(), *leaf, black_box(proof)));
        }
    });
    let tree_hashing = hashing(JOBS - 1);
    vec![
        row("build the tree", build, tree_hashing),
        row("take the proof", prove, tree_hashing),
        row("verify the proof", verify, hashing(JOBS * JOBS.ilog2())),
    ]
}

fn main() -> std::io::Result<()> {
    let rows = rows();
    let mut out = std::io::stdout().lock();
    for row in &rows {
        let Row {
            name,
            value,
            unit,
            baseline,
            ratio,
        } = row;
        writeln!(
            out,
            "{name:18} {value:9.1} {unit}  hashing alone {baseline:9.1}  ratio {ratio:.2}"
        )?;
    }
    // `cargo bench` adds a flag of its own.
    let mut arguments = std::env::args()
        .skip_while(|argument| argument != "--json")
        .skip(1);
    if let Some(file) = arguments.next() {
        std::fs::write(
            file,
            serde_json::to_vec_pretty(&serde_json::json!({ "rows": rows }))?,
        )?;
    }
    Ok(())
}

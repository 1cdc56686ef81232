//! The contract's artefact, and our hashes against independent libraries: npm's
//! `@openzeppelin/merkle-tree` and `viem`.

use std::{
    collections::BTreeSet,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use alloy::{
    primitives::{Address, B256, keccak256},
    sol_types::{SolCall, SolError, SolEvent},
};
use contracts::{
    id::{JobId, TenantId},
    merkle::JobsTree,
    registry::{
        self, ARTIFACT, BatchConfirmation,
        JobsRegistry::{self, JobsRegistryErrors},
        Leaf, LeafStatus,
    },
};
use serde_json::{Value, json};

/// The canonical signature of an ABI entry, such as `verify((uint64,…),bytes32[])`.
fn signature(entry: &Value) -> String {
    fn ty(input: &Value) -> String {
        let name = input["type"].as_str().unwrap();
        match name.strip_prefix("tuple") {
            Some(suffix) => format!("{}{suffix}", list(&input["components"])),
            None => name.to_owned(),
        }
    }
    fn list(inputs: &Value) -> String {
        let types: Vec<_> = inputs.as_array().unwrap().iter().map(ty).collect();
        format!("({})", types.join(","))
    }
    format!(
        "{}{}",
        entry["name"].as_str().unwrap_or_default(),
        list(&entry["inputs"])
    )
}

fn signatures(kind: &str) -> BTreeSet<String> {
    let artifact: Value = serde_json::from_str(ARTIFACT).unwrap();
    let entries = artifact["abi"].as_array().unwrap().clone();
    entries
        .iter()
        .filter(|entry| entry["type"] == kind)
        .map(signature)
        .collect()
}

#[test]
fn the_bindings_name_what_the_artefact_has() {
    let functions = signatures("function");
    for ours in [
        JobsRegistry::confirmBatchCall::SIGNATURE,
        JobsRegistry::confirmJobCall::SIGNATURE,
        JobsRegistry::verifyCall::SIGNATURE,
        JobsRegistry::cursorCall::SIGNATURE,
        JobsRegistry::batchCountCall::SIGNATURE,
        JobsRegistry::thresholdCall::SIGNATURE,
        JobsRegistry::peaksCall::SIGNATURE,
        JobsRegistry::hashBatchConfirmationCall::SIGNATURE,
        JobsRegistry::leafHashCall::SIGNATURE,
        JobsRegistry::commitmentOfCall::SIGNATURE,
        JobsRegistry::setThresholdCall::SIGNATURE,
        JobsRegistry::pauseCall::SIGNATURE,
        JobsRegistry::unpauseCall::SIGNATURE,
        JobsRegistry::hasRoleCall::SIGNATURE,
        JobsRegistry::CONFIRMER_ROLECall::SIGNATURE,
        JobsRegistry::PAUSER_ROLECall::SIGNATURE,
    ] {
        assert!(functions.contains(ours), "{ours}");
    }
    let events = signatures("event");
    for ours in [
        JobsRegistry::BatchConfirmed::SIGNATURE,
        JobsRegistry::JobConfirmed::SIGNATURE,
        JobsRegistry::SignersChanged::SIGNATURE,
    ] {
        assert!(events.contains(ours), "{ours}");
    }
    let errors = signatures("error");
    let selectors: BTreeSet<_> = errors
        .iter()
        .map(|text| keccak256(text)[..4].to_vec())
        .collect();
    for ours in JobsRegistryErrors::SELECTORS {
        assert!(
            selectors.contains(ours.as_slice()),
            "{}",
            const_hex::encode(ours)
        );
    }
    assert!(errors.contains(JobsRegistry::WrongBatch::SIGNATURE));
    assert_eq!(
        signatures("constructor").into_iter().next().unwrap(),
        "(address,uint48,address[],uint16,address)",
    );
}

#[test]
fn the_bindings_agree_on_results_and_indexed_members() {
    let artifact: Value = serde_json::from_str(ARTIFACT).unwrap();
    let entry = |kind: &str, name: &str| {
        let entries = artifact["abi"].as_array().unwrap();
        entries
            .iter()
            .find(|e| e["type"] == kind && e["name"] == name)
            .unwrap()
            .clone()
    };
    let cursor: Vec<_> = entry("function", "cursor")["outputs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|output| format!("{} {}", output["type"].as_str().unwrap(), output["name"]))
        .collect();
    let expected = [
        "uint64 \"nextBatch\"",
        "uint64 \"nextSequence\"",
        "uint32 \"signerEpoch\"",
        "uint16 \"threshold\"",
        "uint16 \"confirmers\"",
        "bool \"paused\"",
    ];
    assert_eq!(cursor, expected);
    for (name, indexed) in [
        ("BatchConfirmed", 1),
        ("JobConfirmed", 3),
        ("SignersChanged", 1),
    ] {
        let inputs = entry("event", name)["inputs"].as_array().unwrap().clone();
        let flags: Vec<bool> = inputs
            .iter()
            .map(|i| i["indexed"].as_bool().unwrap())
            .collect();
        assert!(
            flags
                .iter()
                .enumerate()
                .all(|(at, flag)| *flag == (at < indexed)),
            "{name}"
        );
    }
}

#[test]
fn the_bytecode_can_be_deployed() {
    assert!(registry::bytecode().len() > 1_000);
}

#[test]
fn ids_and_salted_hashes_have_their_form_on_chain() {
    let job: JobId = "job_0197e2a04b7c7d3e8f5a6b7c8d9e0f1a".parse().unwrap();
    let word = registry::chain_job_id(job);
    let hex = format!("0x0197e2a04b7c7d3e8f5a6b7c8d9e0f1a{}", "0".repeat(32));
    assert_eq!(word.to_string(), hex);
    assert_eq!(registry::job_of_chain_id(word), Some(job));
    assert_eq!(registry::job_of_chain_id(B256::repeat_byte(1)), None);
    let tenant: TenantId = "tenant_0197e2a04b7c7d3e8f5a6b7c8d9e0f1b".parse().unwrap();
    let expected = keccak256(b"tenant_0197e2a04b7c7d3e8f5a6b7c8d9e0f1b");
    assert_eq!(registry::tenant_hash(tenant), expected);
    let salted = [&[9; 32], b"{}".as_slice()].concat();
    assert_eq!(
        registry::salted_hash(B256::repeat_byte(9), b"{}"),
        keccak256(salted)
    );
}

fn leaf(sequence: u64) -> Leaf {
    let word = |salt: &str| keccak256(format!("{salt}{sequence}"));
    let status = if sequence.is_multiple_of(3) {
        LeafStatus::Failed
    } else {
        LeafStatus::Completed
    };
    Leaf {
        sequence,
        jobId: word("job"),
        submitter: Address::from_word(word("submitter")),
        tenant: word("tenant"),
        contentHash: word("content"),
        resultHash: word("result"),
        status: status.as_u8(),
    }
}

/// What npm's libraries make of the question. Fails, and says what to do, where they are missing:
/// a skipped oracle would look like agreement.
fn ask_node(question: &Value) -> Value {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("solidity");
    let advice = "run ./ops/test, or: apt-get install nodejs npm; cd contracts/solidity; npm ci";
    assert!(
        folder.join("node_modules/viem").exists(),
        "npm packages are missing: {advice}"
    );
    let mut node = Command::new("node")
        .arg("merkle_vectors.mjs")
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("node does not start ({error}): {advice}"));
    node.stdin
        .take()
        .unwrap()
        .write_all(question.to_string().as_bytes())
        .unwrap();
    let output = node.wait_with_output().unwrap();
    assert!(output.status.success(), "node failed: {advice}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn trees_commitments_and_digests_are_those_of_npms_libraries() {
    let address = Address::repeat_byte(0x42);
    for count in [1, 2, 3, 7, 64, 100] {
        let first = 1_000_000_007;
        let leaves: Vec<Leaf> = (first..first + count).map(leaf).collect();
        let hashes: Vec<B256> = leaves.iter().map(Leaf::hash).collect();
        let tree = JobsTree::new(&hashes).unwrap();
        let confirmation = BatchConfirmation {
            batchNumber: 12_345_678_901,
            firstSequence: first,
            jobCount: u32::try_from(count).unwrap(),
            jobsRoot: tree.root(),
            signerEpoch: 4,
        };
        let shown: Vec<Value> = leaves
            .iter()
            .map(|leaf| {
                json!({
                    "sequence": leaf.sequence.to_string(), "jobId": leaf.jobId,
                    "submitter": leaf.submitter, "tenant": leaf.tenant,
                    "contentHash": leaf.contentHash, "resultHash": leaf.resultHash,
                    "status": leaf.status,
                })
            })
            .collect();
        let answer = ask_node(&json!({
            "leaves": shown,
            "domain": {"chainId": 31_337, "verifyingContract": address},
            "batch": {"batchNumber": "12345678901", "firstSequence": first.to_string(),
                      "signerEpoch": 4},
        }));
        let proofs: Vec<_> = (0..leaves.len())
            .map(|index| tree.proof(index).unwrap())
            .collect();
        assert_eq!(answer["root"], json!(tree.root()));
        assert_eq!(answer["leafHashes"], json!(hashes));
        assert_eq!(answer["proofs"], json!(proofs));
        assert_eq!(
            answer["commitment"],
            json!(confirmation.batch().commitment())
        );
        assert_eq!(
            answer["eip712Digest"],
            json!(confirmation.digest(31_337, address))
        );
    }
}

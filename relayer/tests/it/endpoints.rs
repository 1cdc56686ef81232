//! Endpoints that are dead, behind, or lie: what only one of them says is not believed for ever.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use alloy::{
    consensus::{Transaction as _, TxEnvelope},
    eips::Decodable2718 as _,
    primitives::{Bytes, U64, keccak256},
    sol,
    sol_types::SolCall as _,
};
use contracts::registry::JobsRegistry::{cursorCall, cursorReturn, hasRoleCall};
use ops::testing::{eventually, value};
use serde_json::{Value, json};

use crate::{DEADLINE, node::Node, proxy::Proxy, world::World};

sol! {
    function revokeRole(bytes32 role, address account);
}

/// No chain is there in our lifetime.
const LIE: u64 = 1 << 40;
const WAITING: &str = "SELECT EXISTS (SELECT FROM relayer.batches WHERE state = 'included')\n\
    AND NOT EXISTS (SELECT FROM relayer.batches WHERE state <> 'included')";

/// A chain with as many endpoints before it as asked for.
async fn world_behind<const N: usize>() -> (World, [Proxy; N]) {
    behind(Node::start()).await
}

async fn behind<const N: usize>(node: Node) -> (World, [Proxy; N]) {
    let mut world = World::on(node).await;
    let mut proxies = Vec::new();
    for _ in 0..N {
        proxies.push(Proxy::before(&world.node.url).await);
    }
    let urls: Vec<&str> = proxies.iter().map(|proxy| proxy.url.as_str()).collect();
    world.set("RPC_URL", urls.join(","));
    let Ok(proxies) = proxies.try_into() else {
        unreachable!("as many as were made")
    };
    (world, proxies)
}

fn block(number: u64) -> Value {
    let hash = keccak256(number.to_be_bytes());
    json!({ "result": { "number": U64::from(number), "hash": hash, "baseFeePerGas": "0x7" } })
}

fn asks_for(tag: &str, method: &str, parameters: &Value) -> bool {
    method == "eth_getBlockByNumber" && parameters[0] == tag
}

/// Who told of an absurd head is asked about it, and says what holds now.
fn bear_out(parameters: &mut Value) {
    if parameters[1] == json!(U64::from(LIE)) {
        parameters[1] = json!("latest");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_three_endpoints_one_that_is_dead_stops_nothing() {
    let (mut world, [one, two]) = world_behind::<2>().await;
    let urls = format!("http://127.0.0.1:1/k3y,{},{}", one.url, two.url);
    world.set("RPC_URL", urls);
    let _relayer = world.relayer();
    let jobs = world.complete(3, true).await;
    let told = world.told_of(&jobs).await;
    world.audit(&jobs, &told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_final_takes_two_endpoints_where_two_are_configured() {
    let (world, [_one, two]) = world_behind::<2>().await;
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    two.says(move |method, parameters| {
        let refuses = asks_for("finalized", method, parameters);
        counter.fetch_add(usize::from(refuses), Ordering::SeqCst);
        refuses.then(|| json!({ "error": { "code": -32000, "message": "pruned" } }))
    });
    let _relayer = world.relayer();
    let jobs = world.complete(3, false).await;
    world.until("it is included", WAITING).await;
    let head = world.node.head().await;
    let before = asked.load(Ordering::SeqCst);
    eventually("it was looked at again, long final", DEADLINE, || async {
        let looks = asked.load(Ordering::SeqCst) - before;
        (looks > 5 && world.node.head().await > head + 5).then_some(())
    })
    .await;
    assert!(value::<bool>(&world.pool, WAITING).await, "one says so");
    two.is_honest();
    let told = world.told_of(&jobs).await;
    world.audit(&jobs, &told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_three_endpoints_one_that_lies_in_everything_holds_up_nothing() {
    let (world, [liar, _two, _three]) = world_behind::<3>().await;
    let asks = |selector: [u8; 4]| Bytes::from(selector.to_vec()).to_string();
    let (cursor_of, role_of) = (asks(cursorCall::SELECTOR), asks(hasRoleCall::SELECTOR));
    let cursor: Bytes = cursorCall::abi_encode_returns(&cursorReturn {
        nextBatch: 1 << 40,
        nextSequence: 1 << 40,
        signerEpoch: 99,
        confirmers: 9,
        threshold: 9,
        paused: true,
    })
    .into();
    let tip = 1_u64 << 50;
    // Higher than the others, at the node's own pace, and not absurd.
    let started = Instant::now();
    let ahead = move || block(200 + started.elapsed().as_secs() * 4);
    liar.says(move |method, parameters| {
        let call = &parameters[0];
        let input = call["input"].as_str().unwrap_or_default();
        match method {
            _ if asks_for("latest", method, parameters) => Some(ahead()),
            "eth_getTransactionCount" if parameters[1] != "pending" => {
                Some(json!({ "result": "0x0" }))
            }
            "eth_maxPriorityFeePerGas" => Some(json!({ "result": U64::from(tip) })),
            "eth_call" if input.starts_with(&cursor_of) => Some(json!({ "result": cursor })),
            "eth_call" if input.starts_with(&role_of) => {
                Some(json!({ "result": format!("0x{:064x}", 0) }))
            }
            "eth_call" if call["from"].is_string() => Some(json!({
                "error": { "code": 3, "message": "execution reverted", "data": "0x01020304" }
            })),
            _ => None,
        }
    });
    let _relayer = world.relayer();
    let jobs = world.complete(3, true).await;
    let told = world.told_of(&jobs).await;
    world.audit(&jobs, &told).await;
    let highest = world
        .number("SELECT max(tip_wei) FROM relayer.transactions")
        .await;
    assert!(u64::try_from(highest).unwrap() < tip, "{highest} was paid");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_that_are_not_found_however_deep_are_told_and_block_nothing_for_ever() {
    let (world, [only]) = behind::<1>(Node::start_at(2_100_000)).await;
    only.says(|method, _| (method == "eth_getLogs").then(|| json!({ "result": [] })));
    let _relayer = world.relayer();
    let jobs = world.complete(1, true).await;
    let told = async || (world.said("has no logs of batches") > 0).then_some(());
    eventually("the end of the search is told", DEADLINE, told).await;
    only.is_honest();
    let told = world.told_of(&jobs).await;
    world.audit(&jobs, &told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absurd_head_that_each_of_two_told_once_stalls_nothing() {
    let (world, [one, two]) = world_behind::<2>().await;
    let lied = Arc::new(AtomicUsize::new(0));
    for (proxy, due) in [(&one, 4), (&two, 7)] {
        let lied = Arc::clone(&lied);
        let mut looks = 0;
        proxy.says(move |method, parameters| {
            bear_out(parameters);
            let looks_now = asks_for("latest", method, parameters);
            looks += usize::from(looks_now);
            (looks_now && looks == due).then(|| {
                lied.fetch_add(1, Ordering::SeqCst);
                block(LIE)
            })
        });
    }
    let _relayer = world.relayer();
    let first = world.complete(1, true).await;
    eventually("both have lied", DEADLINE, || async {
        (lied.load(Ordering::SeqCst) == 2).then_some(())
    })
    .await;
    let jobs = [first, world.complete(2, true).await].concat();
    let told = world.told_of(&jobs).await;
    world.audit(&jobs, &told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_only_endpoint_that_lies_once_is_heard_again() {
    let (world, [only]) = world_behind::<1>().await;
    let relayer = world.relayer();
    let mut jobs = world.complete(1, true).await;
    world.told_of(&jobs).await;
    // One lie a look, the last first, beginning with the look at which the batch is signed.
    let beyond = json!({ "result": "0xffffffffffffffff" });
    let lies = Arc::new(Mutex::new(vec![
        ("eth_getTransactionCount", "0x", beyond),
        (
            "eth_getTransactionCount",
            "0x",
            json!({ "result": U64::from(LIE) }),
        ),
        ("eth_getBlockByNumber", "latest", block(u64::MAX)),
        ("eth_getBlockByNumber", "latest", block(LIE)),
        ("eth_getBlockByNumber", "finalized", block(LIE)),
    ]));
    let left = Arc::clone(&lies);
    let mut may_lie = true;
    only.says(move |method, parameters| {
        bear_out(parameters);
        may_lie |= asks_for("finalized", method, parameters);
        let mut left = left.lock().unwrap();
        let (of, tag, _) = left.last()?;
        let asked = parameters.to_string();
        if !may_lie || method != *of || !asked.contains(tag) {
            return None;
        }
        may_lie = false;
        left.pop().map(|(_, _, lie)| lie)
    });
    world.node.stop_mining().await;
    jobs.extend(world.complete(2, true).await);
    eventually("all lies were told", DEADLINE, || async {
        lies.lock().unwrap().is_empty().then_some(())
    })
    .await;
    world.node.resume_mining().await;
    jobs.extend(world.complete(1, true).await);
    world.told_of(&jobs).await;
    world.assert_proven(&jobs).await;
    drop(relayer);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nonce_that_only_one_endpoint_tells_burns_none() {
    // Of two with one head, the first one's report is the one that counts most.
    let (world, [one, _two]) = world_behind::<2>().await;
    one.says(|method, parameters| {
        let counts = method == "eth_getTransactionCount" && parameters[1] != "pending";
        counts.then(|| json!({ "result": U64::from(LIE) }))
    });
    let _relayer = world.relayer();
    let jobs = world.complete(2, true).await;
    let sealed = "SELECT count(*) = 2 FROM relayer.nonces";
    world.until("both are written down", sealed).await;
    let highest = world.number("SELECT max(nonce) FROM relayer.nonces").await;
    assert!(highest < 10, "nonce {highest} was given out");
    one.is_honest();
    let told = world.told_of(&jobs).await;
    world.audit(&jobs, &told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_are_asked_for_in_pages_and_what_is_unreadable_stops_no_sending() {
    // Between block 0, since nobody told us the registry's first, and the head lie several pages.
    let (world, [only]) = behind::<1>(Node::start_at(9_000)).await;
    let ranges = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&ranges);
    let number = |value: &Value| serde_json::from_value::<U64>(value.clone()).unwrap();
    only.says(move |method, parameters| {
        let asks = method == "eth_getLogs";
        asks.then(|| {
            let (from, to) = (&parameters[0]["fromBlock"], &parameters[0]["toBlock"]);
            let blocks: u64 = (number(to) - number(from)).to();
            seen.lock().unwrap().push(blocks + 1);
            json!({ "error": { "code": -32005, "message": "range too wide" } })
        })
    });
    let _relayer = world.relayer();
    let mut jobs = world.complete(1, true).await;
    eventually("logs were asked for", DEADLINE, || async {
        (!ranges.lock().unwrap().is_empty()).then_some(())
    })
    .await;
    world.node.stop_mining().await;
    jobs.extend(world.complete(1, true).await);
    let sent = "SELECT count(*) = 2 FROM relayer.transactions WHERE outcome = 'accepted'";
    world
        .until("the next one is sent without any logs", sent)
        .await;
    let sql = "SELECT raw FROM relayer.transactions ORDER BY nonce DESC LIMIT 1";
    let raw: Vec<u8> = value(&world.pool, sql).await;
    let hash = *TxEnvelope::decode_2718_exact(&raw).unwrap().tx_hash();
    let drops = json!([hash]);
    world
        .node
        .call::<Value>("anvil_dropTransaction", drops)
        .await;
    eventually("the same bytes were sent again", DEADLINE, || async {
        let parameters = json!([hash]);
        let found = world
            .node
            .call::<Option<Value>>("eth_getTransactionByHash", parameters);
        found.await.map(drop)
    })
    .await;
    world.node.resume_mining().await;
    let widest = ranges.lock().unwrap().iter().max().copied();
    assert!(widest.is_some_and(|blocks| blocks <= 2_000), "{widest:?}");
    only.is_honest();
    let told = world.told_of(&jobs).await;
    world.audit(&jobs, &told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_always_reverts_stalls_until_a_person_resumes_it() {
    let (world, [only]) = world_behind::<1>().await;
    // The endpoint says that a signer may sign who may not, and that the contract takes it.
    let account = world.attesters()[0];
    let role = keccak256("CONFIRMER_ROLE");
    let input = revokeRoleCall { role, account };
    let input: Bytes = input.abi_encode().into();
    world
        .node
        .send_as(world.admin, world.registry, input, 50)
        .await;
    let simulated = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&simulated);
    let asks = Bytes::from(hasRoleCall::SELECTOR.to_vec());
    only.says(move |method, parameters| {
        let call = &parameters[0];
        let input = call["input"].as_str().unwrap_or_default();
        if method != "eth_call" {
            None
        } else if call["from"].is_string() {
            seen.lock().unwrap().push(call["gas"].clone());
            Some(json!({ "result": "0x" }))
        } else {
            let allows = input.starts_with(&asks.to_string());
            allows.then(|| json!({ "result": format!("0x{:064x}", 1) }))
        }
    });
    eventually("the signer is revoked", DEADLINE, || async {
        let call = hasRoleCall { role, account };
        let may: bool = world.node.view(world.registry, &call, "latest").await;
        (!may).then_some(())
    })
    .await;
    let _relayer = world.relayer();
    let jobs = world.complete(1, true).await;
    let stalled = "SELECT EXISTS (SELECT FROM relayer.batches WHERE state = 'stalled')";
    world.until("it stalls", stalled).await;
    let nonces = "SELECT count(*) FROM relayer.nonces";
    let spent = world.number(nonces).await;
    assert_eq!(spent, i64::from(relayer::batch::REVERTS_MAX));
    let gas = "SELECT raw FROM relayer.transactions LIMIT 1";
    let raw: Vec<u8> = value(&world.pool, gas).await;
    let limit = TxEnvelope::decode_2718_exact(&raw).unwrap().gas_limit();
    assert!(
        simulated
            .lock()
            .unwrap()
            .iter()
            .all(|gas| *gas == json!(U64::from(limit))),
        "it is tried with the gas it is sent with"
    );

    only.is_honest();
    let more = world.complete(1, true).await;
    let waits = "SELECT EXISTS (SELECT FROM relayer.batches WHERE state = 'sealed')";
    world.until("what comes behind it waits", waits).await;
    assert_eq!(world.number(nonces).await, spent, "no more gas is spent");
    let resumed = world.command("resume").output().unwrap();
    let said = String::from_utf8(resumed.stdout).unwrap();
    assert!(said.starts_with("batch 1 of 0x"), "{said}");
    let jobs = [jobs, more].concat();
    let told = world.told_of(&jobs).await;
    world.audit(&jobs, &told).await;
}

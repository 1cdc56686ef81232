//! The contract `JobsRegistry` as Rust sees it: its calls, events and errors, the artefact to
//! deploy, and the hashes that stand in its leaves, commitments and signatures.

use std::borrow::Cow;

use alloy::{
    primitives::{Address, B256, Bytes, keccak256},
    sol,
    sol_types::{Eip712Domain, SolStruct, SolValue},
};

use crate::id::{JobId, TenantId};

/// The compiler's output: `{"abi": …, "bytecode": "0x…"}`.
pub const ARTIFACT: &str = include_str!("../solidity/artifacts/JobsRegistry.json");
/// Name of the EIP-712 domain.
pub const DOMAIN_NAME: &str = "JobsRegistry";
/// Version of the EIP-712 domain.
pub const DOMAIN_VERSION: &str = "1";

/// How a sealed job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum LeafStatus {
    /// It has a result.
    Completed = 1,
    /// It has an error.
    Failed = 2,
}

sol! {
    /// What the confirmers sign.
    #[derive(Debug, PartialEq, Eq)]
    struct BatchConfirmation {
        /// Counted from 1.
        uint64 batchNumber;
        /// The sequence of the batch's first job.
        uint64 firstSequence;
        /// How many jobs it holds.
        uint32 jobCount;
        /// The root of the tree of its jobs.
        bytes32 jobsRoot;
        /// Which set of signers this is for: `cursor().signerEpoch`.
        uint32 signerEpoch;
    }

    /// A batch as its commitment names it.
    #[derive(Debug, PartialEq, Eq)]
    struct BatchRef {
        /// Counted from 1.
        uint64 batchNumber;
        /// The sequence of the batch's first job.
        uint64 firstSequence;
        /// How many jobs it holds.
        uint32 jobCount;
        /// The root of the tree of its jobs.
        bytes32 jobsRoot;
    }

    /// A job's outcome, a leaf of its batch's tree.
    #[derive(Debug, PartialEq, Eq)]
    struct Leaf {
        /// The job's number on the contract, from 1.
        uint64 sequence;
        /// The job's UUID in the first 16 bytes.
        bytes32 jobId;
        /// The address that may prove it, or zero.
        address submitter;
        /// Keccak-256 of the tenant's id.
        bytes32 tenant;
        /// Keccak-256 of salt and payload.
        bytes32 contentHash;
        /// Keccak-256 of salt and result (or error).
        bytes32 resultHash;
        /// A `LeafStatus`.
        uint8 status;
    }

    /// The contract; `contracts/solidity/src/JobsRegistry.sol` says what each part does.
    #[derive(Debug, PartialEq, Eq)]
    contract JobsRegistry {
        constructor(
            address admin,
            uint48 adminDelay,
            address[] confirmers,
            uint16 required,
            address pauser
        );

        function confirmBatch(BatchConfirmation confirmation, bytes[] signatures) external;
        function confirmJob(
            bytes32 jobId,
            address submitter,
            bytes32 tenant,
            bytes32 resultHash,
            bytes32 contentHash,
            uint8 status,
            uint64 nonce,
            bytes[] signatures
        ) external;
        function verify(
            Leaf leaf,
            bytes32[] jobProof,
            BatchRef batch,
            bytes32[] batchProof
        ) external view returns (bool);
        function cursor() external view returns (
            uint64 nextBatch,
            uint64 nextSequence,
            uint32 signerEpoch,
            uint16 threshold,
            uint16 confirmers,
            bool paused
        );
        function batchCount() external view returns (uint64);
        function threshold() external view returns (uint16);
        function peaks(uint256 height) external view returns (bytes32);
        function hashBatchConfirmation(BatchConfirmation confirmation)
            external view returns (bytes32);
        function leafHash(Leaf leaf) external pure returns (bytes32);
        function commitmentOf(BatchRef batch) external pure returns (bytes32);
        function setThreshold(uint16 required) external;
        function pause() external;
        function unpause() external;
        function hasRole(bytes32 role, address account) external view returns (bool);
        function CONFIRMER_ROLE() external view returns (bytes32);
        function PAUSER_ROLE() external view returns (bytes32);

        event BatchConfirmed(
            uint64 indexed batchNumber,
            uint64 firstSequence,
            uint32 jobCount,
            bytes32 jobsRoot,
            bytes32 commitment
        );
        event JobConfirmed(
            bytes32 indexed jobId,
            address indexed submitter,
            bytes32 indexed tenant,
            uint64 sequence,
            bytes32 contentHash,
            bytes32 resultHash,
            uint8 status
        );
        event SignersChanged(uint32 indexed signerEpoch, uint16 threshold, uint16 confirmers);

        error WrongBatch(uint64 expected, uint64 given);
        error WrongSequence(uint64 expected, uint64 given);
        error WrongEpoch(uint32 expected, uint32 given);
        error EmptyBatch(uint64 batchNumber);
        error TooFewSignatures(uint256 required, uint256 given);
        error SignersNotAscending(address previous, address signer);
        error NotAConfirmer(address signer);
        error ECDSAInvalidSignature();
        error ECDSAInvalidSignatureLength(uint256 length);
        error ECDSAInvalidSignatureS(bytes32 s);
        error ConfirmationsPaused();
        error ConfirmationsNotPaused();
        error InvalidThreshold(uint16 threshold, uint16 confirmers);
        error InvalidConfirmer(address account);
    }
}

impl Leaf {
    /// The leaf's hash, as `StandardMerkleTree` makes it: hashed twice, so that no inner node can
    /// pass for a leaf.
    #[must_use]
    pub fn hash(&self) -> B256 {
        keccak256(keccak256(self.abi_encode()))
    }
}

impl BatchRef {
    /// The batch's leaf in the mountain range.
    #[must_use]
    pub fn commitment(&self) -> B256 {
        keccak256(self.abi_encode())
    }
}

impl BatchConfirmation {
    /// The batch that this confirms.
    #[must_use]
    pub fn batch(&self) -> BatchRef {
        BatchRef {
            batchNumber: self.batchNumber,
            firstSequence: self.firstSequence,
            jobCount: self.jobCount,
            jobsRoot: self.jobsRoot,
        }
    }

    /// What the confirmers of the contract at `registry` sign (EIP-712).
    #[must_use]
    pub fn digest(&self, chain_id: u64, registry: Address) -> B256 {
        self.eip712_signing_hash(&domain(chain_id, registry))
    }
}

impl LeafStatus {
    /// The status as it stands in a leaf.
    #[must_use]
    pub const fn as_u8(self) -> u8 {
        self as u8
    }
}

impl TryFrom<u8> for LeafStatus {
    type Error = u8;

    fn try_from(number: u8) -> Result<Self, u8> {
        match number {
            1 => Ok(Self::Completed),
            2 => Ok(Self::Failed),
            other => Err(other),
        }
    }
}

/// The EIP-712 domain of the contract at `registry`.
#[must_use]
pub fn domain(chain_id: u64, registry: Address) -> Eip712Domain {
    Eip712Domain {
        name: Some(Cow::Borrowed(DOMAIN_NAME)),
        version: Some(Cow::Borrowed(DOMAIN_VERSION)),
        chain_id: Some(alloy::primitives::U256::from(chain_id)),
        verifying_contract: Some(registry),
        salt: None,
    }
}

/// The creation code; the ABI-encoded `JobsRegistry::constructorCall` follows it in a deployment.
#[must_use]
pub fn bytecode() -> Bytes {
    let artifact: serde_json::Value =
        serde_json::from_str(ARTIFACT).expect("a test reads the artefact");
    let text = artifact["bytecode"]
        .as_str()
        .expect("a test reads the bytecode");
    const_hex::decode(text)
        .expect("a test decodes the bytecode")
        .into()
}

/// A job's id as it stands on chain: the UUID in the first 16 bytes.
#[must_use]
pub fn chain_job_id(job: JobId) -> B256 {
    let mut word = B256::ZERO;
    word[..16].copy_from_slice(job.uuid().as_bytes());
    word
}

/// The job that [`chain_job_id`] made `word` of, if any.
#[must_use]
pub fn job_of_chain_id(word: B256) -> Option<JobId> {
    let uuid = uuid::Uuid::from_slice(&word[..16]).ok()?;
    (word[16..] == [0; 16]).then_some(JobId::from_uuid(uuid))
}

/// A tenant as it stands on chain: the hash of its id's text.
#[must_use]
pub fn tenant_hash(tenant: TenantId) -> B256 {
    keccak256(tenant.to_string())
}

/// The hash that seals `bytes` (a payload, result or error) with the job's salt.
#[must_use]
pub fn salted_hash(salt: B256, bytes: &[u8]) -> B256 {
    let mut hasher = alloy::primitives::Keccak256::new();
    hasher.update(salt);
    hasher.update(bytes);
    hasher.finalize()
}

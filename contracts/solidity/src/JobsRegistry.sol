// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {AccessControl} from "@openzeppelin/contracts/access/AccessControl.sol";
import {
    AccessControlDefaultAdminRules
} from "@openzeppelin/contracts/access/extensions/AccessControlDefaultAdminRules.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";
import {MountainRange} from "./MountainRange.sol";

/// @title Results of jobs, sealed in signed batches
/// @notice Every confirmed job has one sequence number, every batch covers the contiguous range
/// that starts where the batch before it ended, and both start at 1 (zero means none). The cursor
/// in one packed slot enforces that, so a replayed, overlapping or skipped batch reverts.
///
/// Immutable: there is no proxy. The admin chooses signers and their threshold, nothing else, and
/// no role can undo a confirmation. Pausing stops confirmations, never verification.
contract JobsRegistry is AccessControlDefaultAdminRules, EIP712 {
    using MountainRange for bytes32[64];

    /// @notice What the confirmers sign (EIP-712, domain "JobsRegistry" version "1").
    /// There is no deadline: cursor and epoch bound a signature's life.
    struct BatchConfirmation {
        uint64 batchNumber;
        uint64 firstSequence;
        uint32 jobCount;
        bytes32 jobsRoot;
        uint32 signerEpoch;
    }

    /// @notice A confirmed batch as a proof names it: the fields its commitment is made of.
    struct BatchRef {
        uint64 batchNumber;
        uint64 firstSequence;
        uint32 jobCount;
        bytes32 jobsRoot;
    }

    /// @notice One job's outcome, a leaf of its batch's tree.
    struct Leaf {
        uint64 sequence;
        bytes32 jobId;
        address submitter;
        bytes32 tenant;
        bytes32 contentHash;
        bytes32 resultHash;
        uint8 status;
    }

    /// @notice Everything a confirmation reads or writes besides its peak, in one slot.
    struct Cursor {
        uint64 nextBatch;
        uint64 nextSequence;
        uint32 signerEpoch;
        uint16 threshold;
        uint16 confirmers;
        bool paused;
    }

    /// @notice May sign confirmations; `threshold` of them are needed.
    bytes32 public constant CONFIRMER_ROLE = keccak256("CONFIRMER_ROLE");
    /// @notice May stop and resume confirmations.
    bytes32 public constant PAUSER_ROLE = keccak256("PAUSER_ROLE");
    /// @notice The EIP-712 type hash of {BatchConfirmation}.
    bytes32 public constant BATCH_CONFIRMATION_TYPEHASH = keccak256(
        "BatchConfirmation(uint64 batchNumber,uint64 firstSequence,uint32 jobCount,"
        "bytes32 jobsRoot,uint32 signerEpoch)"
    );

    /// @notice Where the next batch must start, and who may sign it.
    Cursor public cursor;
    /// @notice The range of batch commitments; `peaks(h)` counts while bit `h` of {batchCount} is
    /// set and is stale otherwise.
    bytes32[64] public peaks;

    mapping(bytes32 jobId => mapping(address grantee => bool)) private _access;

    /// @notice A batch was confirmed. These logs, in order, complete the proof of any job.
    event BatchConfirmed(
        uint64 indexed batchNumber,
        uint64 firstSequence,
        uint32 jobCount,
        bytes32 jobsRoot,
        bytes32 commitment
    );
    /// @notice A job was confirmed alone, through {confirmJob}; its batch's log precedes this one.
    event JobConfirmed(
        bytes32 indexed jobId,
        address indexed submitter,
        bytes32 indexed tenant,
        uint64 sequence,
        bytes32 contentHash,
        bytes32 resultHash,
        uint8 status
    );
    /// @notice Confirmers or threshold changed: signatures of earlier epochs are void.
    event SignersChanged(uint32 indexed signerEpoch, uint16 threshold, uint16 confirmers);
    /// @notice The submitter of a proven job gave `grantee` access to its encrypted result.
    event AccessGranted(bytes32 indexed jobId, address indexed submitter, address indexed grantee);
    /// @notice Confirmations stopped.
    event Paused(address account);
    /// @notice Confirmations resumed.
    event Unpaused(address account);

    error WrongBatch(uint64 expected, uint64 given);
    error WrongSequence(uint64 expected, uint64 given);
    error WrongEpoch(uint32 expected, uint32 given);
    error EmptyBatch(uint64 batchNumber);
    error TooFewSignatures(uint256 required, uint256 given);
    error NotAConfirmer(address signer);
    error SignersNotAscending(address previous, address signer);
    error InvalidThreshold(uint16 threshold, uint16 confirmers);
    error InvalidConfirmer(address account);
    error NotSubmitter(address submitter, address caller);
    error NotProven(bytes32 jobId, uint64 sequence);
    error ConfirmationsPaused();
    error ConfirmationsNotPaused();

    /// @param admin Manages roles and threshold; handed over in two steps, `adminDelay` apart.
    /// @param adminDelay Seconds between the two steps.
    /// @param confirmers The first confirmers, without zero or repetition.
    /// @param required How many of them a confirmation needs.
    /// @param pauser The first holder of {PAUSER_ROLE}.
    constructor(
        address admin,
        uint48 adminDelay,
        address[] memory confirmers,
        uint16 required,
        address pauser
    ) AccessControlDefaultAdminRules(adminDelay, admin) EIP712("JobsRegistry", "1") {
        cursor.nextBatch = 1;
        cursor.nextSequence = 1;
        for (uint256 i = 0; i < confirmers.length; ++i) {
            if (!_grantRole(CONFIRMER_ROLE, confirmers[i])) revert InvalidConfirmer(confirmers[i]);
        }
        _setThreshold(required);
        _grantRole(PAUSER_ROLE, pauser);
    }

    /// @notice Confirms the next batch. Anyone may submit it: the signatures are the authority.
    /// @param signatures 65-byte ECDSA signatures of {hashBatchConfirmation}, at least `threshold`
    /// of them, in strictly increasing order of their signers' addresses.
    function confirmBatch(BatchConfirmation calldata confirmation, bytes[] calldata signatures)
        external
    {
        _confirm(confirmation, signatures);
    }

    /// @notice Confirms one job as a batch of one over the same cursor: `nonce` is its sequence,
    /// its batch is the next one, and the signatures are over the {BatchConfirmation} of that
    /// batch, whose root is the job's {leafHash}.
    function confirmJob(
        bytes32 jobId,
        address submitter,
        bytes32 tenant,
        bytes32 resultHash,
        bytes32 contentHash,
        uint8 status,
        uint64 nonce,
        bytes[] calldata signatures
    ) external {
        Leaf memory leaf = Leaf(nonce, jobId, submitter, tenant, contentHash, resultHash, status);
        _confirm(
            BatchConfirmation(cursor.nextBatch, nonce, 1, leafHash(leaf), cursor.signerEpoch),
            signatures
        );
        emit JobConfirmed(jobId, submitter, tenant, nonce, contentHash, resultHash, status);
    }

    /// @notice Lets `grantee` decrypt the result of a proven job; only its submitter may.
    function grantAccess(
        Leaf calldata leaf,
        bytes32[] calldata jobProof,
        BatchRef calldata batch,
        bytes32[] calldata batchProof,
        address grantee
    ) external {
        if (leaf.submitter != msg.sender) {
            revert NotSubmitter(leaf.submitter, msg.sender);
        }
        if (!verify(leaf, jobProof, batch, batchProof)) {
            revert NotProven(leaf.jobId, leaf.sequence);
        }
        _access[leaf.jobId][grantee] = true;
        emit AccessGranted(leaf.jobId, msg.sender, grantee);
    }

    /// @notice Sets how many confirmers must sign; voids every signature given before.
    function setThreshold(uint16 required) external onlyRole(DEFAULT_ADMIN_ROLE) {
        _setThreshold(required);
    }

    /// @notice Stops confirmations. Verification and access grants go on.
    function pause() external onlyRole(PAUSER_ROLE) {
        if (cursor.paused) revert ConfirmationsPaused();
        cursor.paused = true;
        emit Paused(msg.sender);
    }

    /// @notice Resumes confirmations.
    function unpause() external onlyRole(PAUSER_ROLE) {
        if (!cursor.paused) revert ConfirmationsNotPaused();
        cursor.paused = false;
        emit Unpaused(msg.sender);
    }

    /// @notice Whether the submitter of `jobId` gave `grantee` access.
    function hasAccess(bytes32 jobId, address grantee) external view returns (bool) {
        return _access[jobId][grantee];
    }

    /// @notice How many confirmers must sign.
    function threshold() external view returns (uint16) {
        return cursor.threshold;
    }

    /// @notice How many batches were confirmed: the number of leaves in the range.
    function batchCount() public view returns (uint64) {
        return cursor.nextBatch - 1;
    }

    /// @notice Whether `leaf` was confirmed. False, never a revert, for whatever is not proven.
    /// @param jobProof Siblings from the leaf to `batch.jobsRoot` (OpenZeppelin: sorted pairs).
    /// @param batchProof Siblings from the batch's commitment to its present peak. A path only ever
    /// grows at its end, so an older proof is completed from {BatchConfirmed} logs.
    function verify(
        Leaf calldata leaf,
        bytes32[] calldata jobProof,
        BatchRef calldata batch,
        bytes32[] calldata batchProof
    ) public view returns (bool) {
        uint64 sequence = leaf.sequence;
        if (batch.batchNumber == 0 || sequence < batch.firstSequence) return false;
        if (sequence - batch.firstSequence >= batch.jobCount) return false;
        if (!MerkleProof.verifyCalldata(jobProof, batch.jobsRoot, leafHash(leaf))) return false;
        return peaks.contains(batchCount(), batch.batchNumber - 1, commitmentOf(batch), batchProof);
    }

    /// @notice The digest a confirmer signs.
    function hashBatchConfirmation(BatchConfirmation memory confirmation)
        public
        view
        returns (bytes32)
    {
        return _hashTypedDataV4(keccak256(abi.encode(BATCH_CONFIRMATION_TYPEHASH, confirmation)));
    }

    /// @notice A job's leaf, as OpenZeppelin's StandardMerkleTree makes it: the double keccak of
    /// `abi.encode(uint64,bytes32,address,bytes32,bytes32,bytes32,uint8)`.
    function leafHash(Leaf memory leaf) public pure returns (bytes32) {
        return keccak256(bytes.concat(keccak256(abi.encode(leaf))));
    }

    /// @notice A batch's leaf in the range: `keccak256(abi.encode(uint64 batchNumber,
    /// uint64 firstSequence, uint32 jobCount, bytes32 jobsRoot))`, four 32-byte words. Nodes of the
    /// range hash two words, so a commitment and a node are never the same string.
    function commitmentOf(BatchRef memory batch) public pure returns (bytes32) {
        return keccak256(abi.encode(batch));
    }

    /// @dev The only way a batch is confirmed.
    function _confirm(BatchConfirmation memory confirmation, bytes[] calldata signatures) private {
        Cursor memory head = cursor;
        uint64 number = confirmation.batchNumber;
        uint64 first = confirmation.firstSequence;
        if (head.paused) revert ConfirmationsPaused();
        if (number != head.nextBatch) revert WrongBatch(head.nextBatch, number);
        if (first != head.nextSequence) revert WrongSequence(head.nextSequence, first);
        if (confirmation.signerEpoch != head.signerEpoch) {
            revert WrongEpoch(head.signerEpoch, confirmation.signerEpoch);
        }
        if (confirmation.jobCount == 0) revert EmptyBatch(number);
        _checkSignatures(hashBatchConfirmation(confirmation), head.threshold, signatures);

        (cursor.nextBatch, cursor.nextSequence) = (number + 1, first + confirmation.jobCount);
        BatchRef memory batch =
            BatchRef(number, first, confirmation.jobCount, confirmation.jobsRoot);
        bytes32 commitment = commitmentOf(batch);
        peaks.append(number - 1, commitment);
        emit BatchConfirmed(number, first, batch.jobCount, batch.jobsRoot, commitment);
    }

    /// @dev Increasing order makes the signers distinct without a set of those seen.
    function _checkSignatures(bytes32 digest, uint256 required, bytes[] calldata signatures)
        private
        view
    {
        if (signatures.length < required) {
            revert TooFewSignatures(required, signatures.length);
        }
        address previous = address(0);
        for (uint256 i = 0; i < signatures.length; ++i) {
            address signer = ECDSA.recoverCalldata(digest, signatures[i]);
            if (signer <= previous) revert SignersNotAscending(previous, signer);
            if (!hasRole(CONFIRMER_ROLE, signer)) revert NotAConfirmer(signer);
            previous = signer;
        }
    }

    /// @dev Counts confirmers and voids earlier signatures, however the role is granted.
    function _grantRole(bytes32 role, address account) internal override returns (bool) {
        // Nobody signs for the zero address, but it would count towards the threshold.
        if (role == CONFIRMER_ROLE && account == address(0)) revert InvalidConfirmer(account);
        bool granted = super._grantRole(role, account);
        if (granted && role == CONFIRMER_ROLE) {
            ++cursor.confirmers;
            _nextEpoch();
        }
        return granted;
    }

    /// @dev As {_grantRole}; refuses to leave fewer confirmers than the threshold needs, whether
    /// the admin revokes or the confirmer renounces.
    function _revokeRole(bytes32 role, address account) internal override returns (bool) {
        bool revoked = super._revokeRole(role, account);
        if (revoked && role == CONFIRMER_ROLE) {
            --cursor.confirmers;
            _checkThreshold(cursor.threshold);
            _nextEpoch();
        }
        return revoked;
    }

    function _setThreshold(uint16 required) private {
        _checkThreshold(required);
        cursor.threshold = required;
        _nextEpoch();
    }

    function _checkThreshold(uint16 required) private view {
        if (required == 0 || required > cursor.confirmers) {
            revert InvalidThreshold(required, cursor.confirmers);
        }
    }

    function _nextEpoch() private {
        emit SignersChanged(++cursor.signerEpoch, cursor.threshold, cursor.confirmers);
    }
}

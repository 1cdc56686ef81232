// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {AccessControl} from "@openzeppelin/contracts/access/AccessControl.sol";

/// @title The other ways to put results on chain, for comparison
/// @notice Each keeps one job's id and result by the least code that works, called by one role
/// holder. {JobsRegistry} is compared with them in `GAS.md`; none of them is deployed.
contract Designs is AccessControl {
    struct Result {
        bytes32 hash;
        address sender;
        uint48 time;
        uint8 status;
    }

    bytes32 private constant RELAYER_ROLE = keccak256("RELAYER_ROLE");

    mapping(bytes32 jobId => bytes32) private _hashes;
    mapping(bytes32 jobId => Result) private _results;

    event Confirmed(bytes32 indexed jobId, bytes32 resultHash);

    error AlreadyConfirmed(bytes32 jobId);

    constructor() {
        _grantRole(RELAYER_ROLE, msg.sender);
    }

    function logOne(bytes32 jobId, bytes32 hash) external onlyRole(RELAYER_ROLE) {
        emit Confirmed(jobId, hash);
    }

    function mapOne(bytes32 jobId, bytes32 hash) external onlyRole(RELAYER_ROLE) {
        _map(jobId, hash);
    }

    function structOne(bytes32 jobId, bytes32 hash) external onlyRole(RELAYER_ROLE) {
        _struct(jobId, hash);
    }

    function logMany(bytes32[] calldata jobIds, bytes32[] calldata hashes)
        external
        onlyRole(RELAYER_ROLE)
    {
        for (uint256 i = 0; i < jobIds.length; ++i) {
            emit Confirmed(jobIds[i], hashes[i]);
        }
    }

    function mapMany(bytes32[] calldata jobIds, bytes32[] calldata hashes)
        external
        onlyRole(RELAYER_ROLE)
    {
        for (uint256 i = 0; i < jobIds.length; ++i) {
            _map(jobIds[i], hashes[i]);
        }
    }

    function structMany(bytes32[] calldata jobIds, bytes32[] calldata hashes)
        external
        onlyRole(RELAYER_ROLE)
    {
        for (uint256 i = 0; i < jobIds.length; ++i) {
            _struct(jobIds[i], hashes[i]);
        }
    }

    function _map(bytes32 jobId, bytes32 hash) private {
        if (_hashes[jobId] != 0) revert AlreadyConfirmed(jobId);
        _hashes[jobId] = hash;
        emit Confirmed(jobId, hash);
    }

    function _struct(bytes32 jobId, bytes32 hash) private {
        if (_results[jobId].time != 0) revert AlreadyConfirmed(jobId);
        _results[jobId] = Result(hash, msg.sender, uint48(block.timestamp), 1);
        emit Confirmed(jobId, hash);
    }
}

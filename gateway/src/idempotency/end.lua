-- Ends a claim, if it is still the caller's: with an answer that is kept, or without one.
-- KEYS as in claim.lua. ARGV: token, state ('' frees the key), head, body, life of what is kept in
-- ms, compute units to give back, the job that the content now stands for ('' forgets the content).
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
if ARGV[2] == '' then
  redis.call('DEL', KEYS[1])
else
  redis.call('HDEL', KEYS[1], 'token', 'until', 'paid')
  redis.call('HSET', KEYS[1], 'state', ARGV[2], 'head', ARGV[3], 'body', ARGV[4])
  redis.call('PEXPIRE', KEYS[1], ARGV[5])
end
if ARGV[6] ~= '0' and redis.call('EXISTS', KEYS[2]) == 1 then
  -- After a flush it may hold less than is given back.
  if redis.call('HINCRBY', KEYS[2], 'used', -tonumber(ARGV[6])) < 0 then
    redis.call('HSET', KEYS[2], 'used', 0)
  end
end
if redis.call('GET', KEYS[3]) == ARGV[1] then
  if ARGV[7] == '' then
    redis.call('DEL', KEYS[3])
  else
    redis.call('SET', KEYS[3], ARGV[7], 'PX', ARGV[5])
  end
end
return 1
